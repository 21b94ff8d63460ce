"""One run on one rank, from the claim of its directory to its last save: what pretraining and fine-tuning share.

Holds the order in which these things happen. What is trained, and on what, is for the two composition roots to say.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import nn

from pretrain.checkpoint.base import Reader
from pretrain.checkpoint.commit import MANIFEST_FILE, step_name, step_names
from pretrain.checkpoint.load import Shapes
from pretrain.checkpoint.save import Checkpoints
from pretrain.commands import StopRequest, exit_code_to
from pretrain.data.batch import Batch
from pretrain.distributed.world import World, joined, rank
from pretrain.files import hash_file, replace_file
from pretrain.objectives.base import Objective
from pretrain.optim.schedule import LearningRate
from pretrain.registry import choices, plain
from pretrain.strategy.base import Memory, Strategy
from pretrain.tracking.jsonl import METRICS_FILE, missing
from pretrain.train.agreement import check_agreement, check_started_alike
from pretrain.train.changes import changes
from pretrain.train.computing import products_of, start_kernels
from pretrain.train.early_stopping import EarlyStopping
from pretrain.train.hooks import RunHooks
from pretrain.train.loop import TrainConfig, TrainState, train
from pretrain.train.metrics import MFU_CONVENTION, StepMeter, Throughput
from pretrain.train.own_hooks import HookedRun, OwnHooks, hook_configs
from pretrain.train.peaks import peak_of_all
from pretrain.train.profiling import drawn
from pretrain.train.resuming import Fingerprints, change_of_rate, resume
from pretrain.train.run_dir import (
    CHECKPOINTS,
    HANG,
    TOKENIZER_FILE,
    RunDirectory,
    handled,
)
from pretrain.train.summary import ModelSize, versions

_EARLY = "stopped before the first step; what is prepared is kept, and the same command goes on"

log = logging.getLogger(__name__)


class Trainee(NamedTuple):
    """A model ready to be trained."""

    model: nn.Module  # as the strategy wrapped it
    strategy: Strategy
    checkpoints: Checkpoints
    fingerprints: Fingerprints
    state: TrainState  # where the run stands
    saved: dict[str, Any] | None  # what the checkpoint that it resumed from holds beside its tensors; None: step 0


@dataclass(frozen=True, kw_only=True)
class Session:
    """A run whose ranks have met and agree. Its methods are collectives, in the order in which they stand here."""

    program: str  # "pretrain" or "finetune"
    cfg: Any  # the root configuration; read here: run, seed, train, optim, strategy, precision, ..., checkpoint
    world: World
    directory: RunDirectory | None  # on rank 0 alone
    stop: StopRequest

    @classmethod
    @contextmanager
    def opened(cls, program: str, cfg: Any, **record: Any) -> Iterator[Session]:
        """Claim the run directory, log into it, join the other ranks and see that all were started alike.

        `record` are entries of run.json that are known so far. The exit code goes there at the end.
        """
        packages = ["pretrain", program] if program != "pretrain" else ["pretrain"]
        with ExitStack() as stack:
            stop = stack.enter_context(StopRequest(_EARLY))
            directory = None
            if rank() == 0:
                directory = stack.enter_context(closing(RunDirectory.claim(cfg.run)))
                stack.enter_context(directory.log_to(*packages))
                directory.note_loss()
                stack.enter_context(exit_code_to(directory.end))
                found = versions()
                log.debug("%s", ", ".join(f"{name} {number}" for name, number in found.items()))
                log.debug("%s", MFU_CONVENTION)
                directory.record(name=cfg.run.name, versions=found, mfu=MFU_CONVENTION, exit=None, **record)
            else:  # all ranks find the same, and the first one says it
                stack.enter_context(handled(packages, logging.NullHandler()))
            timeout, ended = timedelta(minutes=cfg.run.timeout_minutes), directory.end if directory else None
            world = stack.enter_context(joined(timeout, cfg.run.directory / HANG, ended))
            stack.enter_context(products_of(cfg, world.device))
            check_started_alike(cfg, packages, world)
            yield cls(program=program, cfg=cfg, world=world, directory=directory, stop=stop)

    def build(
        self,
        module: Objective,
        fingerprints: Fingerprints,
        *,
        shapes: Shapes,
        first_weights: Callable[[], Reader],
        num_steps: int,
        unsaid: Fingerprints,
        accept_changed: bool = False,
        planned_in: Path | None = None,
    ) -> Trainee:
        """Hand a module on the meta device to the strategy, and fill it from the newest checkpoint if there is one.

        `shapes` are those of the whole module, `first_weights` fill it at step 0, `num_steps` are those of the whole
        run, `unsaid` what steps of older versions do not say (`network_defaults`). `accept_changed` goes on with other
        corpora, which is noted. `planned_in` is the run whose plan of the learning rate a branch takes up. Raises what
        `resume` raises.
        """
        cfg = self.cfg
        strategy = cfg.strategy.build(world=self.world, precision=cfg.precision, compilation=cfg.compile)
        model = strategy.setup(module, cfg.optim.build)
        checkpoints = Checkpoints(cfg.run.directory / CHECKPOINTS, cfg.checkpoint, self.world)
        check_agreement(fingerprints, self.world)
        accept = self._accept if accept_changed else None
        committed = self.directory.committed if self.directory else {}
        saved = resume(
            checkpoints,
            strategy,
            shapes,
            fingerprints,
            num_steps=num_steps,
            unsaid=unsaid,
            committed=committed,
            accept=accept,
        )
        checkpoints.begin()
        if saved is None:
            strategy.load_fragments(first_weights())
        elif self.directory:
            path, before = self.directory.path / METRICS_FILE, planned_in or self.directory.path
            for said in (
                missing(path, saved["step"], saved.get("metrics")),
                change_of_rate(before, LearningRate(cfg.optim.lr, cfg.schedule, num_steps), saved["step"]),
            ):
                if said:
                    self.directory.note(said)
        state = TrainState(step=saved["step"], tokens=saved["tokens"]) if saved else TrainState()
        return Trainee(model, strategy, checkpoints, fingerprints, state, saved)

    def _accept(self, change: str) -> None:
        if self.directory:
            self.directory.note(change)

    def begin(
        self,
        network: Any,
        size: ModelSize,
        *,
        tokenizer: bytes,
        beside: Mapping[str, bytes] = MappingProxyType({}),
        **facts: Any,
    ) -> str:
        """Record that the run starts: configuration, tokenizer and, in run.json, what other commands will want to know.

        `beside` are further files by name, that belong to the tokenizer. Comes after the resume is accepted: a refused
        one leaves the directory as it was. Returns in which kernels it will compute, for the plan.
        """
        computing = start_kernels(self.cfg, network, self.world)
        if self.directory is None:
            return computing
        changed = changes(self.directory.path, self.cfg)
        self.directory.begin()
        for change in changed:
            log.info("changed since the run's last start: %s", change)
        self.directory.write_config(self.cfg, f"{self.program}_schema")
        for name, content in {**beside, TOKENIZER_FILE: tokenizer}.items():
            replace_file(self.directory.path / name, [content])
        group, choice = choices()[type(network)]
        self.directory.record(
            network={"choice": f"{group}={choice}", **plain(network)},
            parameters=size.parameters,
            flops_per_token=size.flops_per_token,
            host=socket.gethostname(),
            ranks=self.world.size,
            computing=computing,
            **facts,
        )
        return computing

    def hooks(
        self,
        trainee: Trainee,
        *,
        size: ModelSize,
        num_steps: int,
        stopping: EarlyStopping,
        predicted: Memory,
        **others: Any,
    ) -> RunHooks:
        """Return what the loop calls, as the checkpoint left it that the run resumes from; `others` are more fields."""
        cfg, state, directory = self.cfg, trainee.state, self.directory
        peak = peak_of_all(self.world, cfg.precision.dtype, tf32=cfg.precision.takes_tf32(self.world.device))
        throughput = Throughput(state.step, state.tokens, size.flops_per_token, peak, finish=self.world.finish)
        own = OwnHooks({name: config.build() for name, config in hook_configs(cfg.hooks).items()}, self.world)
        tracker = None
        if directory:
            tracker = cfg.tracker.build(
                run_dir=directory.path,
                run_name=cfg.run.name,
                total_steps=num_steps,
                config=plain(cfg),
                start_step=state.step,
            )
            steps = trainee.checkpoints.directory
            directory.keep_committed(name for name in step_names(steps) if name <= step_name(state.step))

        def committed(step: int, path: Path, best: bool) -> None:
            if directory and tracker:
                digest = hash_file(path / MANIFEST_FILE)
                directory.keep_committed(step_names(path.parent), **{path.name: digest})
                if best:
                    directory.record(best_step=step)
                tracker.saved(step, path, best)
            with throughput.paused():
                own.saved(step, path, best)

        trainee.checkpoints.on_commit = committed
        trainee.checkpoints.better = stopping.better
        hooks = RunHooks(
            log_every=cfg.log.every,
            max_skipped=cfg.train.max_skipped,
            world=self.world,
            strategy=trainee.strategy,
            meter=StepMeter(self.world.device),
            throughput=throughput,
            profiler=cfg.profile.build(cfg.run.directory, state, self.world, throughput),
            stopping=stopping,
            own=own,
            checkpoints=trainee.checkpoints,
            tracker=tracker,
            fingerprints=trainee.fingerprints,
            facts=directory.facts if directory else {},
            predicted=predicted,
            **others,
        )
        if trainee.saved:
            hooks.restore(trainee.saved)
        return hooks

    def train(
        self,
        trainee: Trainee,
        steps: Iterable[list[Batch]],
        schedule: Callable[[int], float],
        hooks: RunHooks,
        cfg: TrainConfig,
        *,
        evaluate_first: bool = False,
    ) -> None:
        """Train to the end; whatever the end is, the tracker learns the exit code and the last save is completed."""
        close_tracker = hooks.tracker.close if hooks.tracker else lambda code: None
        with (
            exit_code_to(close_tracker),
            exit_code_to(hooks.own.end),
            closing(trainee.checkpoints),
            drawn(steps, hooks.profiler) as steps,
        ):
            hooks.own.begin(
                HookedRun(
                    directory=self.cfg.run.directory,
                    total_steps=cfg.steps,
                    state=trainee.state,
                    module=trainee.model,
                    world=self.world,
                    stop=hooks.own.stop,
                )
            )
            if evaluate_first and hooks.evaluate_every and trainee.state.step == 0:
                hooks.evaluate(trainee.state)
            self.stop.training = True
            over = trainee.state.step > 0 and hooks.end_early()  # as it was when the run ended the last time
            train(
                trainee.model,
                trainee.strategy,
                () if over else steps,
                schedule,
                trainee.state,
                cfg=cfg,
                seed=self.cfg.seed,
                world=self.world,
                hooks=hooks,
                stop=self.stop,
            )
        if self.directory and hooks.evaluate_every:
            self.directory.record(best_step=hooks.best_saved(trainee.state))

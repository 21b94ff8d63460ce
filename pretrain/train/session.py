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
from pretrain.data.course import Course
from pretrain.distributed.stragglers import Stragglers
from pretrain.distributed.world import World, joined, rank
from pretrain.files import hash_file
from pretrain.objectives.base import Objective
from pretrain.optim.schedule import LearningRate
from pretrain.registry import choices, plain
from pretrain.strategy.base import Memory, Strategy
from pretrain.tracking.base import Tracker
from pretrain.tracking.jsonl import METRICS_FILE, SKIPS_FILE, missing
from pretrain.train.agreement import check_agreement, check_started_alike
from pretrain.train.computing import products_of, start_kernels
from pretrain.train.detours.rewinding import let_go
from pretrain.train.early_stopping import EarlyStopping
from pretrain.train.hooks import RunHooks
from pretrain.train.loop import TrainConfig, TrainState, train
from pretrain.train.metrics import MFU_CONVENTION, StepMeter, Throughput
from pretrain.train.mirror.restore import fetch_lost
from pretrain.train.mirror.uploads import Mirror
from pretrain.train.own_hooks import HookedRun, OwnHooks, hook_configs
from pretrain.train.peaks import peak_of_all
from pretrain.train.profiling.base import drawn
from pretrain.train.replicas import Replicas
from pretrain.train.resuming import Fingerprints, change_of_rate, resume
from pretrain.train.room import memory_named
from pretrain.train.run_dir.base import CHECKPOINTS, HANG, TOKENIZER_FILE, TRACE_FILE, RunDirectory, handled
from pretrain.train.run_dir.changes import changes
from pretrain.train.skips import Skips
from pretrain.train.summary import ModelSize, versions
from pretrain.train.trace import Trace

_EVERY_BATCH = Course.constant(1)
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
    mirror: Mirror | None  # on rank 0, of a run that has one

    @classmethod
    @contextmanager
    def opened(cls, program: str, cfg: Any, **record: Any) -> Iterator[Session]:
        """Claim the run directory, log into it, join the other ranks and see that all were started alike.

        `record` are entries of run.json that are known so far. The exit code goes there at the end.
        """
        packages = ["pretrain", program] if program != "pretrain" else ["pretrain"]
        with ExitStack() as stack:
            stop = stack.enter_context(StopRequest(_EARLY))
            directory = mirror = None
            if rank() == 0:
                directory = stack.enter_context(closing(RunDirectory.claim(cfg.run)))
                stack.enter_context(directory.log_to(*packages))
                directory.note_loss()
                stack.enter_context(exit_code_to(directory.end))
                found = versions()
                log.debug("%s", ", ".join(f"{name} {number}" for name, number in found.items()))
                log.debug("%s", MFU_CONVENTION)
                directory.record(name=cfg.run.name, versions=found, mfu=MFU_CONVENTION, exit=None, **record)
                if mirror := Mirror.of(cfg.checkpoint, cfg.run, stop):  # waits at the end, when no other rank does
                    stack.enter_context(mirror)
            else:  # all ranks find the same, and the first one says it
                stack.enter_context(handled(packages, logging.NullHandler()))
            timeout, ended = timedelta(minutes=cfg.run.timeout_minutes), directory.end if directory else None
            limits = {"heartbeat_s": cfg.run.heartbeat_timeout_s, "debug": cfg.run.debug_collectives}
            world = stack.enter_context(joined(timeout, cfg.run.directory / HANG, ended, **limits))
            stack.enter_context(memory_named(world))
            stack.enter_context(products_of(cfg, world.device))
            check_started_alike(cfg, packages, world)
            fetch_lost(cfg.checkpoint, cfg.run, directory, world)
            yield cls(program=program, cfg=cfg, world=world, directory=directory, stop=stop, mirror=mirror)

    def build(
        self,
        module: Objective,
        fingerprints: Fingerprints,
        *,
        shapes: Shapes,
        first_weights: Callable[[], Reader],
        rate: LearningRate,
        unsaid: Fingerprints,
        accept_changed: bool = False,
        planned_in: Path | None = None,
    ) -> Trainee:
        """Hand a module on the meta device to the strategy, and fill it from the newest checkpoint if there is one.

        `shapes` are those of the whole module, `first_weights` fill it at step 0, `rate` is that of the whole run,
        `unsaid` what steps of older versions do not say (`network_defaults`). `accept_changed` goes on with other
        corpora, which is noted. `planned_in` is the run whose plan of the learning rate a branch takes up. Raises what
        `resume` raises.
        """
        cfg = self.cfg
        strategy = cfg.strategy.build(world=self.world, precision=cfg.precision, compilation=cfg.compile)
        strategy.guard = cfg.guard.build()
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
            num_steps=rate.total_steps,
            unsaid=unsaid,
            committed=committed,
            from_elsewhere=bool(self.directory and self.directory.recorded("host") != socket.gethostname()),
            accept=accept,
        )
        checkpoints.begin()
        if saved is None:
            strategy.load_fragments(first_weights())
        elif self.directory:
            path, before = self.directory.path / METRICS_FILE, planned_in or self.directory.path
            for said in (
                missing(path, saved["step"], saved.get("metrics")),
                change_of_rate(before, rate, saved["step"]),
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
        before = self.directory.recorded("ranks")
        if before not in (None, self.world.size):
            changed.append(f"ranks: {before} -> {self.world.size}")
        self.directory.begin()
        for change in changed:
            log.info("changed since the run's last start: %s", change)
        self.directory.write_config(self.cfg, f"{self.program}_schema")
        for name, content in {**beside, TOKENIZER_FILE: tokenizer}.items():
            self.directory.write(name, content)
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
        course: Course = _EVERY_BATCH,
        **others: Any,
    ) -> RunHooks:
        """Return what the loop calls, as the checkpoint left it that the run resumes from; `others` are more fields.

        `course` says which batch of the data an optimizer step takes, and how large it is: the time left follows.
        """
        cfg, state, directory = self.cfg, trainee.state, self.directory
        peak = peak_of_all(self.world, cfg.precision.dtype, tf32=cfg.precision.takes_tf32(self.world.device))
        throughput = Throughput(state.step, state.tokens, size.flops_per_token, peak, finish=self.world.finish)
        own = OwnHooks({name: config.build() for name, config in hook_configs(cfg.hooks).items()}, self.world)
        skips = Skips(cfg.train.max_skipped, course.data_step, directory and directory.path / SKIPS_FILE, state.step)
        tracker = self._tracker(num_steps, state.step, course.taken)
        if directory:
            steps = step_names(trainee.checkpoints.directory)
            directory.keep_committed(name for name in steps if name <= step_name(state.step))

        def committed(step: int, path: Path, best: bool) -> None:
            if tracker:
                self._committed(trainee, step, path, best)
                tracker.saved(step, path, best)
            with throughput.paused():
                own.saved(step, path, best)

        trainee.checkpoints.on_commit = committed
        trainee.checkpoints.better = stopping.better
        hooks = RunHooks(
            log_every=cfg.log.every,
            skips=skips,
            world=self.world,
            strategy=trainee.strategy,
            meter=StepMeter(self.world.device),
            trace=Trace(cfg.log.trace, directory.path / TRACE_FILE, state.step) if directory else None,
            throughput=throughput,
            profiler=cfg.profile.build(cfg.run.directory, state, self.world, throughput),
            stopping=stopping,
            own=own,
            stragglers=Stragglers(self.world, cfg.run.straggler_ratio, lambda: throughput.pausing),
            checkpoints=trainee.checkpoints,
            tracker=tracker,
            replicas=Replicas(cfg.replicas, trainee.strategy, state, self.world),
            fingerprints=trainee.fingerprints,
            facts=directory.facts if directory else {},
            predicted=predicted,
            **others,
        )
        if trainee.saved:
            hooks.restore(trainee.saved)
            self._copy(trainee, trainee.checkpoints.directory / step_name(state.step), anew=False)
        return hooks

    def _tracker(self, num_steps: int, start_step: int, work: Callable[[int], float]) -> Tracker | None:
        """Return what records go to, on rank 0; see `hooks`."""
        if self.directory is None:
            return None
        return self.cfg.tracker.build(
            run_dir=self.directory.path,
            run_name=self.cfg.run.name,
            total_steps=num_steps,
            config=plain(self.cfg),
            start_step=start_step,
            work=work,
        )

    def _committed(self, trainee: Trainee, step: int, path: Path, best: bool) -> None:
        """Record on rank 0 that a step is committed, and have it copied to the mirror."""
        if self.directory is None:
            return
        self.directory.keep_committed(step_names(path.parent), **{path.name: hash_file(path / MANIFEST_FILE)})
        if best:
            self.directory.record(best_step=step)
        self._copy(trainee, path)

    def _copy(self, trainee: Trainee, path: Path, *, anew: bool = True) -> None:
        """Have a step copied to the mirror, where the best one stays, whether or not the disk has it."""
        if self.mirror:
            kept = trainee.checkpoints.best
            self.mirror.add(path, [step_name(kept.step)] if kept else [], anew=anew)

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
        close_trace = hooks.trace.close if hooks.trace else lambda code: None
        with (
            let_go(trainee.strategy),
            exit_code_to(close_tracker),
            exit_code_to(close_trace),
            exit_code_to(hooks.own.end),
            closing(trainee.checkpoints),
            drawn(steps, hooks.profiler) as steps,
            hooks.stragglers.measured() as world,
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
            self.world.progress.steps = lambda: trainee.state.step
            over = trainee.state.step > 0 and hooks.end_early()  # as it was when the run ended the last time
            train(
                trainee.model,
                trainee.strategy,
                () if over else steps,
                schedule,
                trainee.state,
                cfg=cfg,
                seed=self.cfg.seed,
                world=world,
                hooks=hooks,
                stop=self.stop,
            )
        if self.directory and hooks.evaluate_every:
            self.directory.record(best_step=hooks.best_saved(trainee.state))

"""The composition root: build everything that a configuration names, resume, train.

Holds no algorithm and no policy: one line a part, in the order in which parts need each other.
"""

from __future__ import annotations

import logging
import shutil
import socket
from contextlib import closing
from functools import partial
from pathlib import Path

import torch
from torch import nn

from pretrain.checkpoint.commit import step_names
from pretrain.checkpoint.save import Checkpoints
from pretrain.config import PretrainConfig
from pretrain.data.batch import Examples
from pretrain.data.loader import StepLoader, evaluation_batches
from pretrain.data.packing import Packing
from pretrain.data.prepare.build import prepare
from pretrain.data.stream import HeldOut, TrainStream
from pretrain.data.vocabulary import load_vocabulary
from pretrain.distributed.world import StopRequest, World, device_type, joined, rank, world_size
from pretrain.errors import exit_code_to
from pretrain.hub.export_dir import warn_unless_exportable
from pretrain.init_from import find_source
from pretrain.initial import InitialWeights
from pretrain.objectives.base import Objective
from pretrain.released import starting_weights
from pretrain.strategy.base import Memory, Strategy
from pretrain.tokenizer.base import load_tokenizer
from pretrain.tracking.base import Tracker
from pretrain.train.agreement import check_agreement, check_started_alike
from pretrain.train.evaluator import Evaluator
from pretrain.train.hooks import RunHooks
from pretrain.train.loop import TrainState, train
from pretrain.train.metrics import StepMeter, Throughput
from pretrain.train.peaks import peak_of_all
from pretrain.train.run_dir import RunDirectory, check_written_by, plain, read_record
from pretrain.train.session import Fingerprints, resume
from pretrain.train.summary import ModelSize, summary, versions

log = logging.getLogger(__name__)


def pretrain(cfg: PretrainConfig) -> None:
    """Pretrain as configured, from the newest checkpoint if there is one. Raises `HeadwaterError`s by kind."""
    cfg.check_start(ranks=world_size(), device_type=device_type())
    cfg.attention.build()
    stop = StopRequest()
    init_from = cfg.init_from
    if init_from and not step_names(cfg.run.directory / "checkpoints"):  # a run that resumes needs its source no more
        init_from = find_source(init_from, first=rank() == 0)
        check_written_by("pretrain", Path(init_from).expanduser())
    if rank() > 0:
        _pretrain(cfg, init_from, None, stop)
        return
    directory = RunDirectory.claim(cfg.run)
    with directory.log_to("pretrain"), exit_code_to(lambda code: directory.record(exit=code)):
        directory.record(name=cfg.run.name, versions=versions(), exit=None)
        if init_from != cfg.init_from:  # a name on the hub, and now its commit, too
            directory.record(init_from=init_from)
        _pretrain(cfg, init_from, directory, stop)


def build_module(cfg: PretrainConfig, vocab_size: int) -> Objective:
    """Return the model inside its objective, on the meta device: shapes without memory."""
    with torch.device("meta"):
        return cfg.objective.build(cfg.model.build(vocab_size=vocab_size, attend=cfg.attention.build()))


def _pretrain(cfg: PretrainConfig, init_from: str | None, directory: RunDirectory | None, stop: StopRequest) -> None:
    with joined() as world:
        check_started_alike(cfg, ["pretrain"], world)
        corpora = prepare(cfg.data.sources, cfg.tokenizer, cfg.data.prepare)
        stream = cfg.data.train_stream(corpora, cfg.seed)
        held_out = cfg.data.held_out(corpora)
        schedule = cfg.schedule.build(cfg.train.steps)
        examples = cfg.objective.examples(partial(load_vocabulary, next(iter(corpora.values()))), cfg.seed)
        tokenizer = next(iter(corpora.values())) / "tokenizer.json"
        module = build_module(cfg, stream.manifest.vocab_size)
        size = ModelSize.of(module, stream.context)
        predicted = cfg.strategy.memory(size.parameters, ranks=world.size, precision=cfg.precision)
        initial = InitialWeights(module, cfg.seed)
        strategy = cfg.strategy.build(world=world, precision=cfg.precision, compilation=cfg.compile)
        wrapped = strategy.setup(module, cfg.optim.build)
        checkpoints = Checkpoints(cfg.run.directory / "checkpoints", cfg.checkpoint, world)
        fingerprints = _fingerprints(cfg, stream)
        check_agreement(fingerprints, world)
        peak = peak_of_all(world, cfg.precision.dtype)
        state = _start(cfg, init_from, checkpoints, initial, strategy, fingerprints, tokenizer)
        tracker = _tracker(cfg, directory, state) if directory else None
        hooks = RunHooks(
            log_every=cfg.log.every,
            evaluate_every=cfg.eval.every if held_out.num_slots else 0,
            save_every=cfg.checkpoint.every,
            max_skipped=cfg.train.max_skipped,
            world=world,
            strategy=strategy,
            meter=StepMeter(world.device),
            throughput=Throughput(state.step, state.tokens, size.flops_per_token, peak),
            evaluator=_evaluator(cfg, wrapped, held_out, examples, world),
            checkpoints=checkpoints,
            tracker=tracker,
            learning_rate=lambda step: cfg.optim.lr * schedule(step),
            fingerprints=fingerprints,
            predicted=predicted,
        )
        if directory:
            _introduce(cfg, directory, size, predicted, corpora, stream, held_out, world)
        with (
            _steps(cfg, stream, examples, state, world) as steps,
            exit_code_to(tracker.close if tracker else lambda code: None),
            closing(checkpoints),
        ):
            if state.step == 0 and hooks.evaluate_every and cfg.eval.at_start:
                hooks.evaluate(state)
            stop.training = True
            loop, seed = cfg.train, cfg.seed
            train(wrapped, strategy, steps, schedule, state, cfg=loop, seed=seed, world=world, hooks=hooks, stop=stop)


def _fingerprints(cfg: PretrainConfig, stream: TrainStream) -> Fingerprints:
    """Return what a resumed run must find unchanged: the order of its data, its network, the kind of its moments."""
    order = {**stream.fingerprint, "seed": cfg.seed, "train.batch_size": cfg.train.batch_size}
    network = {f"model.{key}": value for key, value in plain(cfg.model).items() if "dropout" not in key}
    return {**order, **network, "optim": type(cfg.optim).__name__}


def _start(
    cfg: PretrainConfig,
    init_from: str | None,
    checkpoints: Checkpoints,
    initial: InitialWeights,
    strategy: Strategy,
    fingerprints: Fingerprints,
    tokenizer: Path,
) -> TrainState:
    """Fill the strategy from the newest checkpoint, or initialise it, and return where the run stands."""
    saved = resume(checkpoints, strategy, initial.shapes, fingerprints, num_steps=cfg.train.steps)
    if saved:
        return TrainState(step=saved["step"], tokens=saved["tokens"])
    world = checkpoints.world
    given = init_from and starting_weights(init_from, initial, fingerprints, world, tokenizer=tokenizer)
    strategy.load_fragments(given or initial)
    return TrainState()


def _evaluator(
    cfg: PretrainConfig, wrapped: nn.Module, held_out: HeldOut, examples: Examples, world: World
) -> Evaluator:
    batches = partial(
        evaluation_batches,
        held_out,
        examples,
        micro_batch_size=cfg.train.micro_batch_size,
        rank=world.rank,
        world_size=world.size,
        max_slots=cfg.eval.max_slots,
    )
    bytes_per_target = held_out.text_bytes / max(held_out.num_targets, 1) if cfg.objective.covers_text else None
    return Evaluator(module=wrapped, batches=batches, bytes_per_target=bytes_per_target, world=world)


def _tracker(cfg: PretrainConfig, directory: RunDirectory, state: TrainState) -> Tracker:
    return cfg.tracker.build(
        run_dir=directory.path,
        run_name=cfg.run.name,
        total_steps=cfg.train.steps,
        config=plain(cfg),
        start_step=state.step,
    )


def _steps(cfg: PretrainConfig, stream: TrainStream, examples: Examples, state: TrainState, world: World) -> StepLoader:
    return StepLoader(
        stream,
        examples,
        batch_size=cfg.train.batch_size,
        micro_batch_size=cfg.train.micro_batch_size,
        rank=world.rank,
        world_size=world.size,
        start_step=state.step,
        num_steps=cfg.train.steps,
        pin=world.device.type == "cuda",
    )


def _introduce(
    cfg: PretrainConfig,
    directory: RunDirectory,
    size: ModelSize,
    predicted: Memory,
    corpora: dict[str, Path],
    stream: TrainStream,
    held_out: HeldOut,
    world: World,
) -> None:
    """Say what the run is about to do, and keep what reports and samples will ask for."""
    directory.begin()  # not before the resume is accepted: a refused one leaves the run as it was
    for change in directory.changes(cfg):
        log.info("changed since the run's last start: %s", change)
    if cfg.objective.wants_special_tokens and cfg.data.packing is Packing.concat:
        log.warning(
            "data.packing=concat: documents are cut where slots end, and an encoder learns from their parts without "
            "the tokens around a document ([CLS], [SEP]); data.packing=windows gives these to every sequence"
        )
    directory.write_config(cfg)
    shutil.copyfile(next(iter(corpora.values())) / "tokenizer.json", directory.path / "tokenizer.json")
    directory.record(
        parameters=size.parameters,
        flops_per_token=size.flops_per_token,
        host=socket.gethostname(),
        ranks=world.size,
        corpora={name: str(path.resolve()) for name, path in corpora.items()},
        vocab_size=stream.manifest.vocab_size,
        document_frame=[stream.manifest.prefix, stream.manifest.suffix],
        mask=stream.manifest.mask,
    )
    tokenizer = load_tokenizer(directory.path / "tokenizer.json")
    warn_unless_exportable(cfg.model, read_record(directory.path), tokenizer)
    log.info(
        summary(
            size=size,
            memory=predicted,
            seq_len=cfg.data.seq_len,
            train=cfg.train,
            world=world,
            stream=stream,
            held_out=held_out,
        )
    )

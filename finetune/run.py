"""The composition root of fine-tuning: build everything that a configuration names, resume, train.

Holds no algorithm and no policy: one line a part, in the order in which parts need each other.
"""

from __future__ import annotations

import logging
import socket
from contextlib import closing
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer
from torch import nn

from finetune.config import SCHEMA, FinetuneConfig
from finetune.counterpart import style_of
from finetune.data.batches import TrainingSteps
from finetune.data.records import STANDARD_INPUT
from finetune.early_stopping import TaskHooks
from finetune.evaluator import TaskEvaluator
from finetune.init_from import beginning, starting_weights
from finetune.model.base import FineTuned
from finetune.model.losses import TaskLoss
from finetune.tasks.base import Encoded, shortlist
from pretrain.checkpoint.commit import step_names
from pretrain.checkpoint.save import Checkpoints
from pretrain.distributed.world import StopRequest, World, device_type, joined, rank, world_size
from pretrain.errors import DataError, check, exit_code_to
from pretrain.files import write_hashed
from pretrain.init_from import Source, find_source
from pretrain.initial import InitialWeights
from pretrain.registry import choices
from pretrain.strategy.base import Memory
from pretrain.tracking.base import Tracker
from pretrain.train.agreement import check_agreement, check_started_alike
from pretrain.train.loop import TrainConfig, TrainState, train
from pretrain.train.metrics import StepMeter, Throughput
from pretrain.train.peaks import peak_of_all
from pretrain.train.run_dir import RunDirectory, plain
from pretrain.train.session import Fingerprints, resume
from pretrain.train.summary import ModelSize, versions

WHEREABOUTS = {"train", "validation", "columns", "header", "word_column", "tag_column", "max_faults"}
"""Settings of tasks that decide what is read of which files; a resumed run must find the same in them."""

log = logging.getLogger(__name__)


class TaskData(NamedTuple):
    """What a task makes of its files."""

    names: list[str]  # of the head's outputs
    train: Encoded
    validation: Encoded


def finetune(cfg: FinetuneConfig) -> None:
    """Fine-tune as configured, from the newest checkpoint if there is one. Raises `HeadwaterError`s by kind."""
    cfg.attention.build()
    cfg.check_start(ranks=world_size(), device_type=device_type())
    stop = StopRequest()
    resumes = bool(step_names(cfg.run.directory / "checkpoints"))  # it needs its source no more
    init_from = None if resumes else find_source(cfg.init_from, first=rank() == 0)
    if rank() > 0:
        _finetune(cfg, init_from, None, stop)
        return
    directory = RunDirectory.claim(cfg.run)
    with directory.log_to("pretrain", "finetune"), exit_code_to(lambda code: directory.record(exit=code)):
        directory.record(name=cfg.run.name, versions=versions(), exit=None)
        if init_from:
            directory.record(init_from=init_from)
        _finetune(cfg, init_from, directory, stop)


def build_module(
    cfg: FinetuneConfig, network: Any, vocab_size: int, names: list[str], loss: TaskLoss | None = None
) -> FineTuned:
    """Return the model with the task's head, on the meta device: shapes without memory. To use it needs no loss."""
    kind = cfg.task.kind
    with torch.device("meta"):
        model = network.build(vocab_size=vocab_size, attend=cfg.attention.build(), head=False)
        cfg.tuning.prepare(model)
        return FineTuned(model, network, style_of(network, kind), kind, loss, outputs=len(names), dropout=cfg.dropout)


def _finetune(cfg: FinetuneConfig, init_from: str | None, directory: RunDirectory | None, stop: StopRequest) -> None:
    with joined() as world:
        check_started_alike(cfg, ["pretrain", "finetune"], world)
        [init_from, *_] = world.gather(init_from)  # a name on the hub, with the commit that rank 0 fetched
        source, tokenizer = beginning(init_from, cfg.run.directory)
        data = _read(cfg, source, tokenizer)
        steps = _steps(cfg, data, world)
        schedule = cfg.schedule.build(steps.total)
        network = replace(source.model, dropout=cfg.dropout, attention_dropout=cfg.attention_dropout)
        loss = cfg.task.loss(data.train, data.names)
        module = build_module(cfg, network, source.vocab_size, data.names, loss)
        share = cfg.tuning.compute_share(len(module.model.blocks))
        size = ModelSize.of(module, data.train.examples.context, share)
        initial = InitialWeights(module, cfg.seed)
        strategy = cfg.strategy.build(world=world, precision=cfg.precision, compilation=cfg.compile)
        wrapped = strategy.setup(module, cfg.optim.build)
        checkpoints = Checkpoints(cfg.run.directory / "checkpoints", cfg.checkpoint, world)
        fingerprints = _fingerprints(cfg, network, data)
        check_agreement(fingerprints, world)
        saved = resume(checkpoints, strategy, initial.shapes, fingerprints, num_steps=steps.total)
        if saved is None:
            strategy.load_fragments(starting_weights(source, initial, world, names=data.names, scratch=cfg.scratch))
        state = TrainState(step=saved["step"], tokens=saved["tokens"]) if saved else TrainState()
        tracker = (
            _introduce(cfg, directory, source, network, tokenizer, data, steps, size, state) if directory else None
        )
        peak = peak_of_all(world, cfg.precision.dtype)
        every = cfg.eval.every or -(-len(data.train.examples) // cfg.train.batch_size)
        hooks = TaskHooks(
            log_every=cfg.log.every,
            evaluate_every=every,
            save_every=every,
            max_skipped=cfg.train.max_skipped,
            world=world,
            strategy=strategy,
            meter=StepMeter(world.device),
            throughput=Throughput(state.step, state.tokens, size.flops_per_token, peak),
            evaluator=_evaluator(cfg, wrapped, data, world),
            checkpoints=checkpoints,
            tracker=tracker,
            learning_rate=lambda step: cfg.optim.lr * schedule(step),
            fingerprints=fingerprints,
            predicted=_memory(cfg, size, world),
            metric=cfg.task.metric,
            patience=cfg.eval.patience,
        )
        if saved:
            hooks.go_on(saved)
        with exit_code_to(tracker.close if tracker else lambda code: None), closing(checkpoints):
            stop.training = True
            own, loop = hooks.until_it_stalls(steps.since(state.step)), _train_config(cfg, steps)
            train(wrapped, strategy, own, schedule, state, cfg=loop, seed=cfg.seed, world=world, hooks=hooks, stop=stop)
            checkpoints.settle(wait=True)  # after an early end the last save is under way
        if directory and (best := checkpoints.best):
            directory.record(best_step=best.step)
            log.info("best: %s %.4f at step %s", cfg.task.metric, best.value, best.step)


def _read(cfg: FinetuneConfig, source: Source, tokenizer: Tokenizer) -> TaskData:
    """Read and encode the task's files. Raises `DataError` for one of which no token is left."""
    task, longest = cfg.task, source.model.max_seq_len
    rule = f"{source.path} sees sequences of at most {longest} tokens; lower it"
    check(task.max_tokens <= longest, "task.max_tokens", task.max_tokens, rule)
    sources = {"train": task.train, "validation": task.validation}
    for key, file in sources.items():
        rule = "standard input can be read once, and a run may be resumed; name a file"
        check(file != STANDARD_INPUT, f"task.{key}", file, rule)
    if task.train == task.validation:
        log.warning("task.validation=%s is task.train: what is measured says nothing of other data", task.validation)
    records = {key: task.records(file) for key, file in sources.items()}
    names = task.names(records["train"])
    encoded = {key: task.encode(found, tokenizer, names) for key, found in records.items()}
    for key, found in encoded.items():
        if not len(found.examples):
            rule = "the tokenizer has no token for any of its words; are they those of the right column?"
            raise DataError(f"task.{key}={sources[key]}: {rule}")
    return TaskData(names, encoded["train"], encoded["validation"])


def _steps(cfg: FinetuneConfig, data: TaskData, world: World) -> TrainingSteps:
    return TrainingSteps(
        data.train.examples,
        epochs=cfg.train.epochs,
        batch_size=cfg.train.batch_size,
        max_tokens=cfg.train.max_tokens,
        seed=cfg.seed,
        rank=world.rank,
        world_size=world.size,
        pin=world.device.type == "cuda",
    )


def _train_config(cfg: FinetuneConfig, steps: TrainingSteps) -> TrainConfig:
    """Return what the loop reads: steps, and what becomes of gradients."""
    return TrainConfig(steps=steps.total, clip_norm=cfg.train.clip_norm, max_skipped=cfg.train.max_skipped)


def _memory(cfg: FinetuneConfig, size: ModelSize, world: World) -> Memory:
    """Predict what a rank holds: all weights, but gradients and moments only of what learns."""
    whole, learnt = (
        cfg.strategy.memory(parameters, ranks=world.size, precision=cfg.precision)
        for parameters in (size.parameters, size.learnt)
    )
    return Memory(whole.weights, learnt.gradients, learnt.optimizer)


def _fingerprints(cfg: FinetuneConfig, network: Any, data: TaskData) -> Fingerprints:
    """Return what a resumed run must find unchanged: its data and their order, its network, the kind of its moments."""
    order = {
        "init_from": cfg.init_from,
        "scratch": cfg.scratch,
        "the training set": data.train.examples.sha256[:16],
        "the validation set": data.validation.examples.sha256[:16],
        "task": choices()[type(cfg.task)][1],
        **{f"task.{key}": value for key, value in plain(cfg.task).items() if key not in WHEREABOUTS},
        "names": data.names,
        "tuning": {"choice": choices()[type(cfg.tuning)][1], **plain(cfg.tuning)},
        "seed": cfg.seed,
        "train.epochs": cfg.train.epochs,
        "train.batch_size": cfg.train.batch_size,
    }
    settings = {f"model.{key}": value for key, value in plain(network).items() if "dropout" not in key}
    return {**order, **settings, "optim": type(cfg.optim).__name__}


def _evaluator(cfg: FinetuneConfig, wrapped: nn.Module, data: TaskData, world: World) -> TaskEvaluator:
    return TaskEvaluator(
        module=wrapped,
        task=cfg.task,
        encoded=data.validation,
        names=data.names,
        max_tokens=cfg.train.max_tokens,
        world=world,
    )


def _introduce(
    cfg: FinetuneConfig,
    directory: RunDirectory,
    source: Source,
    network: Any,
    tokenizer: Tokenizer,
    data: TaskData,
    steps: TrainingSteps,
    size: ModelSize,
    state: TrainState,
) -> Tracker:
    """Say what the run is about to do, keep what predictions and exports will ask for, and open the tracker."""
    directory.begin()  # not before the resume is accepted: a refused one leaves the run as it was
    for change in directory.changes(cfg):
        log.info("changed since the run's last start: %s", change)
    directory.write_config(cfg, SCHEMA)
    write_hashed(directory.path / "tokenizer.json", tokenizer.to_str(pretty=True).encode())
    group, choice = choices()[type(network)]
    directory.record(
        parameters=size.parameters,
        parameters_learnt=size.learnt,
        flops_per_token=size.flops_per_token,
        host=socket.gethostname(),
        vocab_size=source.vocab_size,
        document_frame=source.frame or ([], []),
        mask=source.mask,
        network={"choice": f"{group}={choice}", **plain(network)},
        names=data.names,
        records={"training": len(data.train.records), "validation": len(data.validation.records)},
    )
    for split, encoded in (("training", data.train), ("validation", data.validation)):
        lengths = encoded.examples.lengths
        log.info(
            "%s: %s records, %s sequences of %.0f tokens on average and %s at most",
            *(split, f"{len(encoded.records):,}", f"{len(lengths):,}", lengths.mean(), lengths.max()),
        )
    log.info(
        "%s parameters, of which %s learn; %s steps; outputs: %s",
        *(f"{size.parameters:,}", f"{size.learnt:,}", f"{steps.total:,}", shortlist(data.names)),
    )
    return cfg.tracker.build(
        run_dir=directory.path,
        run_name=cfg.run.name,
        total_steps=steps.total,
        config=plain(cfg),
        start_step=state.step,
    )

"""The composition root of fine-tuning: build everything that a configuration names, resume, train.

Holds no algorithm and no policy: one line a part, in the order in which parts need each other. What pretraining does
alike is in `pretrain.train.session`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from finetune.answering.base import Codec, Encoded, Engine
from finetune.config import FinetuneConfig
from finetune.data.batches import TrainingSteps
from finetune.data.records import STANDARD_INPUT
from finetune.from_nothing import Nothing, begin
from finetune.init_from import base_of, codec_of, own_source, weights_from
from finetune.model.lora import LoraConfig, LoraLinear, adapters_of
from finetune.tasks.base import LOWER_IS_BETTER, TaskConfig, shortlist
from pretrain.checkpoint.base import Reader
from pretrain.data.sources.locations import typed_name
from pretrain.distributed.world import World, device_type, rank, world_size
from pretrain.errors import DataError, check
from pretrain.hub.export_dir import warn_unless_exportable
from pretrain.hub.generation_config import generation_settings
from pretrain.hub.spm_files import pair_files
from pretrain.init_from import InitialWeights
from pretrain.objectives.base import Objective
from pretrain.optim.schedule import LearningRate
from pretrain.registry import choices, plain
from pretrain.strategy.base import Memory
from pretrain.tokenizer.base import FOR_TARGETS, text_sha256
from pretrain.train.early_stopping import EarlyStopping
from pretrain.train.loop import TrainConfig
from pretrain.train.mirror.restore import is_mirrored
from pretrain.train.resuming import Fingerprints, network_defaults, network_fingerprints, resumes
from pretrain.train.room import memory_with_room
from pretrain.train.run_dir.record import read_record
from pretrain.train.session import Session
from pretrain.train.summary import ModelSize, of_memory, of_rate, plan
from pretrain.trained.base import Source
from pretrain.trained.source import find_source, shared_source

READING = {"train", "validation", "columns", "header", "delimiter", "word_column", "tag_column", "max_faults"}
"""Settings of tasks that decide which files are read and how: what they yield must stay the same, not the settings."""

log = logging.getLogger(__name__)


class TaskData(NamedTuple):
    """What a task makes of its files."""

    names: list[str]  # of the head's outputs
    train: Encoded
    validation: Encoded


def finetune(cfg: FinetuneConfig) -> Path:
    """Fine-tune as configured, from the newest checkpoint if there is one, and return the run directory.

    Raises `HeadwaterError`s by kind, and `Preempted` once a request to stop is honoured.
    """
    cfg.attention.build()
    cfg.check_start(ranks=world_size(), device_type=device_type())
    resumed = resumes(cfg.run) or (rank() == 0 and is_mirrored(cfg.checkpoint, cfg.run))
    source = None if resumed or cfg.init_from is None else find_source(cfg.init_from, first=rank() == 0)
    record = {"init_from": source.name} if source else {}
    with Session.opened("finetune", cfg, **record) as session:
        _finetune(cfg, _source(cfg, source, session.world, resumed=resumed), session)
    return cfg.run.directory


def _source(cfg: FinetuneConfig, source: Source | None, world: World, *, resumed: bool) -> Source | Nothing:
    """Return what the run starts from: what rank 0 found, what the run kept of it, or nothing. A collective."""
    if found := shared_source(source, world):
        return found
    [resumed, *_] = world.gather(resumed)
    if resumed or cfg.init_from is not None:
        return own_source(cfg.run.directory)
    task = cfg.task
    task.answering.check_model(cfg.model, "the model")
    texts = task.answering.texts(typed_name(task.train, "task.train"))
    return begin(cfg.model, cfg.tokenizer, texts, world, path=cfg.run.directory)


def build_module(
    cfg: FinetuneConfig, network: Any, vocab_size: int, names: list[str], train: Encoded | None = None
) -> Objective:
    """Return the model as the task trains it, on the meta device: shapes without memory. To use it needs no data."""
    answering = cfg.task.answering
    with torch.device("meta"):
        model = network.build(vocab_size=vocab_size, attend=cfg.attention.build(), head=answering.writes)
        cfg.tuning.prepare(model)
        return answering.build(model, network, names, dropout=cfg.dropout, train=train)


def _finetune(cfg: FinetuneConfig, source: Source | Nothing, session: Session) -> None:
    world, task = session.world, cfg.task
    cfg.check_attention(bias=source.network.score_bias)
    codec = task.answering.complete(codec_of(source), source.path)
    written, beside = codec.tokenizer.to_str(pretty=True), pair_files(source.path)
    data = _read(cfg, source, codec)
    steps = _steps(cfg, data, world)
    rate = LearningRate(cfg.optim.lr, cfg.schedule, steps.total)
    network = replace(source.network, dropout=cfg.dropout, attention_dropout=cfg.attention_dropout)
    module = build_module(cfg, network, source.vocab_size, data.names, data.train)
    size = ModelSize.of(module, data.train.examples.shares)
    predicted = memory_with_room(size, cfg, world)
    initial, adapters = InitialWeights(module, cfg.seed), adapters_of(module.model)
    trainee = session.build(
        module,
        _fingerprints(cfg, network, data, written, beside),
        shapes=initial.shapes,
        first_weights=lambda: _first_weights(cfg, source, initial, adapters, world, names=data.names),
        rate=rate,
        unsaid=network_defaults(network),
    )
    computing = session.begin(
        network,
        size,
        parameters_learnt=size.trainable,
        tokenizer=written.encode(),
        beside=beside,
        vocab_size=source.vocab_size,
        **_recorded(codec, source.mask),
        names=data.names,
        base=base_of(source, adapters, run=cfg.run.directory, scratch=cfg.scratch),
        records={"training": len(data.train.records), "validation": len(data.validation.records)},
    )
    if session.directory:
        record = read_record(session.directory.path)
        warn_unless_exportable("finetune", network, record, codec.tokenizer, task.answering.kind)
        log.info(_summary(cfg, data, size, predicted, computing, rate))
    engine = _engine(cfg, trainee.model, module, codec, world)
    lower = task.metric in LOWER_IS_BETTER
    every = cfg.eval.every or -(-len(data.train.examples) // cfg.train.batch_size)
    hooks = session.hooks(
        trainee,
        size=size,
        num_steps=steps.total,
        evaluator=lambda: _measured(task, engine, data),
        evaluate_every=every,
        save_every=every,
        predicted=predicted,
        stopping=EarlyStopping(metric=task.metric, lower_is_better=lower, patience=cfg.eval.patience),
    )
    loop = TrainConfig(steps=steps.total, clip_norm=cfg.train.clip_norm, max_skipped=cfg.train.max_skipped)
    left = steps.since(trainee.state.step)
    session.train(trainee, left, rate.multiplier, hooks, loop, evaluate_first=cfg.eval.at_start)


def _engine(cfg: FinetuneConfig, wrapped: nn.Module, module: Objective, codec: Codec, world: World) -> Engine:
    """Return what answers questions with the model that is trained, which the strategy has `wrapped`."""
    return Engine(
        module=wrapped,
        objective=module,
        codec=codec,
        whole=not cfg.strategy.shards_weights,
        autocast=lambda: cfg.precision.autocast(world.device),
        max_tokens=cfg.train.max_tokens,
        world=world,
    )


def _first_weights(
    cfg: FinetuneConfig,
    source: Source | Nothing,
    initial: InitialWeights,
    adapters: Mapping[str, LoraLinear],
    world: World,
    *,
    names: list[str],
) -> Reader:
    """Return what the module begins with. A collective."""
    kind = cfg.task.answering.kind
    return weights_from(source, initial, world, names=names, kind=kind, adapters=adapters, scratch=cfg.scratch)


def _recorded(codec: Codec, mask: int | None) -> dict[str, Any]:
    """Return what run.json says of how texts become ids and back."""
    return {
        "mask": mask,
        "document_frame": codec.frame,
        "decoder_start": codec.start,
        "chat_template": codec.chat_template,
        "generation": None if codec.rules is None else generation_settings(codec.rules),
    }


def _measured(task: TaskConfig, engine: Engine, data: TaskData) -> dict[str, float]:
    """Return what the task measures of the validation set, and the loss. A collective."""
    found = task.answering.answers(engine, data.validation, data.names, all_of_it=False)
    return found.figures | task.measure(found.encoded, found.each, data.names)


def _read(cfg: FinetuneConfig, source: Source | Nothing, codec: Codec) -> TaskData:
    """Read and encode the task's files. Raises `DataError` for one of which no token is left."""
    task = cfg.task
    task.answering.check_model(source.network, str(source.path))
    sources = {key: typed_name(getattr(task, key), f"task.{key}") for key in ("train", "validation")}
    for key, file in sources.items():
        rule = "standard input can be read once, and a run may be resumed; name a file"
        check(file != STANDARD_INPUT, f"task.{key}", file, rule)
    if sources["train"] == (same := sources["validation"]):
        log.warning("task.validation=%s is task.train: what is measured says nothing of other data", same)
    records = {key: task.records(file) for key, file in sources.items()}
    names = task.names(records["train"])
    encoded = {key: task.answering.encode(found, codec, names) for key, found in records.items()}
    for key, found in encoded.items():
        if not len(found.examples):
            rule = "the tokenizer has no token for any of its words; are they those of the right column?"
            raise DataError(f"task.{key}={sources[key]}: {rule}")
    return TaskData(names, encoded["train"], encoded["validation"])


def _steps(cfg: FinetuneConfig, data: TaskData, world: World) -> TrainingSteps:
    steps = TrainingSteps(
        examples=data.train.examples,
        epochs=cfg.train.epochs,
        batch_size=cfg.train.batch_size,
        max_tokens=cfg.train.max_tokens,
        seed=cfg.seed,
        rank=world.rank,
        world_size=world.size,
        pin=world.device.type == "cuda",
    )
    cfg.profile.check_steps(steps.total)
    return steps


def _fingerprints(
    cfg: FinetuneConfig, network: Any, data: TaskData, tokenizer: str, beside: Mapping[str, bytes]
) -> Fingerprints:
    """Return what a resumed run must find unchanged: its data and their order, its network, the kind of its moments."""
    order = {
        "tokenizer": text_sha256(tokenizer)[:16],
        **{name: text_sha256(beside[name].decode())[:16] for name in beside if name == FOR_TARGETS},
        "init_from": cfg.init_from,
        "scratch": cfg.scratch,
        "the training set": data.train.examples.sha256[:16],
        "the validation set": data.validation.examples.sha256[:16],
        "task": choices()[type(cfg.task)][1],
        **{f"task.{key}": value for key, value in plain(cfg.task).items() if key not in READING},
        "names": data.names,
        "tuning": {"choice": choices()[type(cfg.tuning)][1], **plain(cfg.tuning)},
        **({"adapters": "one a projection"} if isinstance(cfg.tuning, LoraConfig) else {}),  # once: one a matrix
        "seed": cfg.seed,
        "train.epochs": cfg.train.epochs,
        "train.batch_size": cfg.train.batch_size,
    }
    return {**order, **network_fingerprints(network, cfg.optim)}


def _summary(
    cfg: FinetuneConfig, data: TaskData, size: ModelSize, memory: Memory, computing: str, rate: LearningRate
) -> str:
    """Return the plan of fine-tuning."""
    outputs = f"; outputs: {shortlist(data.names)}" if data.names else ""
    some = f", {size.trainable:,} of them trainable" if size.trainable < size.parameters else ""
    rows = [
        ("run", f"{cfg.run.directory}: {cfg.train.epochs:g} epochs in {rate.total_steps:,} steps"),
        ("model", f"{size.parameters:,} parameters{some}{outputs}"),
        ("memory", of_memory(memory)),
        ("compute", computing),
        ("lr", of_rate(rate)),
    ]
    for split, encoded in (("training", data.train), ("validation", data.validation)):
        lengths = encoded.examples.lengths
        sizes = f"{lengths.mean():.0f} tokens on average and {lengths.max()} at most"
        rows.append((split, f"{len(encoded.records):,} records, {len(lengths):,} sequences of {sizes}"))
    return plan(rows)

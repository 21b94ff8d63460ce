"""The composition root: build everything that a configuration names, resume, train.

Holds no algorithm and no policy: one line a part, in the order in which parts need each other. What fine-tuning does
alike is in `train/session`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn

from pretrain.config import PretrainConfig
from pretrain.data.batch import Batch, Examples
from pretrain.data.choice_sets import ChoiceSet, load_choices
from pretrain.data.course import Course, Size
from pretrain.data.loader import StepLoader
from pretrain.data.manifest import Manifest
from pretrain.data.packing import Packing
from pretrain.data.prepare.build import prepare, verify
from pretrain.data.stream import HeldOut, TrainStream
from pretrain.data.vocabulary import load_vocabulary
from pretrain.distributed.world import World, device_type, rank, world_size
from pretrain.errors import check
from pretrain.hub.export_dir import warn_unless_exportable
from pretrain.hub.generation_config import generation_settings, rules_of
from pretrain.init_from import InitialWeights, warn_of_other_pairs, weights_from
from pretrain.models.base import Attend, Model
from pretrain.objectives.base import Objective, TokenLossConfig
from pretrain.objectives.cross_entropy import chunk_for
from pretrain.optim.schedule import LearningRate
from pretrain.strategy.base import Memory
from pretrain.train.branches.base import FIRST_STEP, Origin, first_data_step
from pretrain.train.branches.begin import begin_branch
from pretrain.train.choices import ChoiceEvaluator
from pretrain.train.early_stopping import EarlyStopping
from pretrain.train.evaluator import Evaluator, held_out_evaluator
from pretrain.train.loop import TrainState
from pretrain.train.micro_batches import Passes, found, said
from pretrain.train.resuming import Fingerprints, network_defaults, network_fingerprints, resumes
from pretrain.train.run_dir import TOKENIZER_FILE, check_written_by, read_record
from pretrain.train.samples import Continuations, encoded_prompts
from pretrain.train.session import Session
from pretrain.train.summary import ModelSize, summary
from pretrain.trained.base import Source
from pretrain.trained.source import find_source, shared_source

log = logging.getLogger(__name__)


def pretrain(cfg: PretrainConfig) -> Path:
    """Pretrain as configured, from the newest checkpoint if there is one, and return the run directory.

    Raises `HeadwaterError`s by kind, and `Preempted` once a request to stop is honoured.
    """
    cfg.check_start(ranks=world_size(), device_type=device_type())
    cfg.attention.build()
    source = None
    if cfg.init_from and not resumes(cfg.run):
        source = find_source(cfg.init_from, first=rank() == 0)
        if source:
            check_written_by("pretrain", source.path)
    origin = None
    if cfg.branch_from and not resumes(cfg.run):
        origin = Origin.of(cfg.branch_from, cfg.run.root).resolved()
        check_written_by("pretrain", origin.run)
    # The record holds a name on the hub with its commit.
    record = {"init_from": source.name} if source and source.name != cfg.init_from else {}
    with Session.opened("pretrain", cfg, **record) as session:
        if source := shared_source(source, session.world):
            warn_of_other_pairs(source, cfg.objective)
        _pretrain(cfg, source, origin, session)
    return cfg.run.directory


def prepare_corpora(cfg: PretrainConfig) -> dict[str, Path]:
    """Return the corpus directory of each source; prepare what is not prepared yet, as `pretrain` does by itself.

    With `data.prepare.verify` all their files are read again. Raises `ConfigError` for sources or a tokenizer that do
    not fit, `DataError` for content, `ResourceError` for a full disk or a killed worker.
    """
    cfg.check_tokenizer()
    corpora = prepare(cfg.data.sources, cfg.tokenizer, cfg.data.prepare)
    if cfg.data.prepare.verify:
        for directory in corpora.values():
            verify(directory)
    return corpora


def build_module(cfg: PretrainConfig, vocab_size: int, attend: Attend | None = None) -> Objective:
    """Return the model inside its objective, on the meta device: shapes without memory.

    `attend` takes the place of the configured backend of attention.
    """
    head = cfg.objective.predicts_tokens
    with torch.device("meta"):
        model = cfg.model.build(vocab_size=vocab_size, attend=attend or cfg.attention.build(), head=head)
        return cfg.objective.build(model)


def passes_of(cfg: PretrainConfig, vocab_size: int, memory: Memory, world: World) -> Passes:
    """Return what decides the memory of a forward and backward pass; `memory` is what a rank holds without one."""

    def build(attend: Attend | None) -> Objective:
        objective = cfg.objective
        if attend is None or not isinstance(objective, TokenLossConfig) or objective.chunk_tokens is not None:
            return build_module(cfg, vocab_size, attend)
        # What measures memory pretends to be on a CPU, where chunks of logits are smaller.
        objective = replace(objective, chunk_tokens=chunk_for(vocab_size, "cuda"))
        return build_module(replace(cfg, objective=objective), vocab_size, attend)

    return Passes(
        build=build,
        densest=lambda sequences: Batch.of(cfg.objective.densest(sequences, cfg.data.seq_len)),
        memory=memory,
        strategy=cfg.strategy,
        precision=cfg.precision,
        compilation=cfg.compile,
        attention=cfg.attention,
        make_optimizer=cfg.optim.build,
        world=world,
    )


def _pretrain(cfg: PretrainConfig, source: Source | None, origin: Origin | None, session: Session) -> None:
    world = session.world
    corpora = prepare(cfg.data.sources, cfg.tokenizer, cfg.data.prepare, seq_len=cfg.data.seq_len)
    corpus = next(iter(corpora.values()))
    file = corpus / TOKENIZER_FILE  # the same in each of them
    stream = cfg.data.train_stream(corpora, cfg.seed)
    tokenizer = stream.manifest.tokenizer(corpus)
    held_out = _held_out(cfg, corpora)
    vocabulary = cache(partial(load_vocabulary, corpus))
    examples = cfg.objective.examples(vocabulary, cfg.seed, cfg.data.seq_len)
    choices = load_choices(cfg.eval.choices, "eval.choices", tokenizer, stream.manifest.prefix, cfg.data.seq_len)
    schedule = cfg.schedule.build(cfg.train.steps)
    module = build_module(cfg, stream.manifest.vocab_size)
    size = ModelSize.of(module, stream.lengths)
    predicted = size.memory(cfg.strategy, ranks=world.size, precision=cfg.precision)
    passes = passes_of(cfg, stream.manifest.vocab_size, predicted, world)
    micro_batch_size, entry = _micro_batch(cfg, passes, session)
    initial = InitialWeights(module, cfg.seed)
    start = first_data_step(cfg.run, origin, cfg.branch)
    fingerprints, unsaid = _fingerprints(cfg, stream, start), network_defaults(cfg.model)
    entry |= begin_branch(origin, session, initial.shapes, fingerprints, unsaid) if origin else {}
    trainee = session.build(
        module,
        fingerprints,
        shapes=initial.shapes,
        first_weights=lambda: weights_from(source, initial, fingerprints, world, tokenizer=file) if source else initial,
        num_steps=cfg.train.steps,
        unsaid=unsaid,
        accept_changed=cfg.data.accept_changed,
        planned_in=origin and origin.run,
    )
    computing = session.begin(
        cfg.model,
        size,
        tokenizer=file.read_bytes(),
        corpora={name: str(path.resolve()) for name, path in corpora.items()},
        **_of_tokens(stream.manifest),
        decoder_start=cfg.objective.decoder_start(vocabulary),
        choices={each.name: {"questions": len(each.answers), "chance": each.chance} for each in choices},
        **_generation(source, stream.manifest.vocab_size),
        **entry,
    )
    if session.directory:
        _advise(cfg, session.directory.path, tokenizer, stream)
        log.info(_plan(cfg, size, passes, micro_batch_size, computing, stream, held_out))
    hooks = session.hooks(
        trainee,
        size=size,
        num_steps=cfg.train.steps,
        evaluator=_evaluator(cfg, trainee.model, held_out, examples, micro_batch_size, world),
        choices=_choices(trainee.model, module.model, choices, micro_batch_size * cfg.data.seq_len, world),
        continuations=_continuations(cfg, trainee.model, module.model, stream, tokenizer, world),
        evaluate_every=cfg.eval.every if held_out.num_slots else 0,
        save_every=cfg.checkpoint.every,
        stopping=EarlyStopping(metric="loss", lower_is_better=True, patience=cfg.eval.patience),
        save_best=cfg.eval.saves_best,
        predicted=predicted,
    )
    with _steps(cfg, stream, examples, trainee.state, micro_batch_size, start, world) as steps:
        session.train(trainee, steps, schedule, hooks, cfg.train, evaluate_first=cfg.eval.at_start)


def _held_out(cfg: PretrainConfig, corpora: dict[str, Path]) -> HeldOut:
    """Open what is held out. Raises `ConfigError` if that is nothing, and something needs evaluations."""
    held_out = cfg.data.held_out(corpora)
    rule = f"nothing is held out, and {cfg.eval.needed} needs evaluations; hold out text, or leave it out"
    check(held_out.num_slots > 0 or not cfg.eval.needed, "data.prepare.held_out", cfg.data.prepare.held_out, rule)
    return held_out


def _micro_batch(cfg: PretrainConfig, passes: Passes, session: Session) -> tuple[int, dict[str, Any]]:
    """Return the sequences of a micro-batch, and what run.json says of them if they had to be found. A collective."""
    size = said(cfg.train, cfg.data.seq_len, session.world.size)
    if size is not None:
        return size, {}
    known = session.directory.recorded("micro_batch") if session.directory else None
    entry = found(cfg.train, cfg.data.seq_len, passes, known)
    return entry["size"], {"micro_batch": entry}


def _of_tokens(manifest: Manifest) -> dict[str, Any]:
    """Return what run.json says of token ids."""
    frame = [manifest.prefix, manifest.suffix]
    return {"vocab_size": manifest.vocab_size, "document_frame": frame, "mask": manifest.mask}


def _generation(source: Source | None, vocab_size: int) -> dict[str, Any]:
    """Return what run.json says of the rules of texts, those of a source; nothing, where they are on it already.

    Raises `ConfigError` for a rule about a token that the run's vocabulary does not have.
    """
    rules = source and source.rules
    if source is None or rules is None:
        return {}
    settings = generation_settings(rules)
    rules_of(settings, vocab_size, source.path)
    return {"generation": settings}


def _plan(
    cfg: PretrainConfig,
    size: ModelSize,
    passes: Passes,
    micro_batch_size: int,
    computing: str,
    stream: TrainStream,
    held_out: HeldOut,
) -> str:
    world = passes.world
    return summary(
        directory=cfg.run.directory,
        size=size,
        memory=passes.memory,
        needs=passes.needs(micro_batch_size) if world.device.type == "cuda" else None,
        seq_len=cfg.data.seq_len,
        train=cfg.train,
        micro_batch_size=micro_batch_size,
        learning_rate=LearningRate(cfg.optim.lr, cfg.schedule, cfg.train.steps),
        world=world,
        computing=computing,
        stream=stream,
        held_out=held_out,
        compiled=cfg.compile.described(world.device.type, cfg.strategy),
    )


def _fingerprints(cfg: PretrainConfig, stream: TrainStream, start: int) -> Fingerprints:
    """Return what a resumed run must find unchanged: the order of its data, its network, the kind of its moments."""
    order = {**stream.fingerprint, "seed": cfg.seed, "train.batch_size": cfg.train.batch_size}
    if start:
        order[FIRST_STEP] = start
    return {**order, **network_fingerprints(cfg.model, cfg.optim)}


def _evaluator(
    cfg: PretrainConfig,
    model: nn.Module,
    held_out: HeldOut,
    examples: Examples,
    micro_batch_size: int,
    world: World,
) -> Evaluator:
    return held_out_evaluator(
        model,
        cfg.objective,
        held_out,
        examples,
        micro_batch_size=micro_batch_size,
        max_slots=cfg.eval.max_slots,
        world=world,
    )


def _choices(
    wrapped: nn.Module, model: Model, sets: Sequence[ChoiceSet], batch_tokens: int, world: World
) -> ChoiceEvaluator:
    return ChoiceEvaluator(module=wrapped, model=model, sets=sets, batch_tokens=batch_tokens, world=world)


def _continuations(
    cfg: PretrainConfig, wrapped: nn.Module, model: Model, stream: TrainStream, tokenizer: Tokenizer, world: World
) -> Continuations:
    prefix, suffix = stream.manifest.prefix, stream.manifest.suffix
    longest = cfg.data.seq_len - cfg.eval.sample_tokens
    return Continuations(
        module=wrapped,
        model=model,
        tokenizer=tokenizer,
        prompts=encoded_prompts(cfg.eval.samples, tokenizer, prefix, longest),
        max_tokens=cfg.eval.sample_tokens,
        stop_id=next(iter(suffix or prefix), None),
        world=world,
    )


def _steps(
    cfg: PretrainConfig,
    stream: TrainStream,
    examples: Examples,
    state: TrainState,
    micro_batch_size: int,
    start: int,
    world: World,
) -> StepLoader:
    return StepLoader(
        stream,
        examples,
        course=Course((Size(0, cfg.train.batch_size),), start=start),
        micro_batch_size=micro_batch_size,
        rank=world.rank,
        world_size=world.size,
        start_step=state.step,
        num_steps=cfg.train.steps,
        pin=world.device.type == "cuda",
    )


def _advise(cfg: PretrainConfig, directory: Path, tokenizer: Tokenizer, stream: TrainStream) -> None:
    """Warn of what will disappoint at the end of the run, while it costs nothing to change it."""
    if cfg.objective.wants_special_tokens and cfg.data.packing is Packing.concat:
        log.warning(
            "data.packing=concat: documents are cut where slots end, and an encoder learns from their parts without "
            "the tokens around a document ([CLS], [SEP]); data.packing=windows gives these to every sequence"
        )
    for advice in stream.advice(cfg.train.batch_size):
        log.warning("%s", advice)
    for source in stream.sources:
        if not source.corpus.manifest.hashes_checksums:
            log.info(
                "data.sources.%s: a corpus of an older version; a shard that was changed together with its checksums "
                "is not noticed, but by data.prepare.verify=true or once it is prepared again",
                source.name,
            )
    warn_unless_exportable("pretrain", cfg.model, read_record(directory), tokenizer)

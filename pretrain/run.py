"""The composition root: build everything that a configuration names, resume, train.

Holds no algorithm and no policy: one line a part, in the order in which parts need each other. What fine-tuning does
alike is in `train/session`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn

from pretrain.config import PretrainConfig
from pretrain.data.batch import Batch, Examples, Vocabulary
from pretrain.data.choice_sets import ChoiceSet, load_choices
from pretrain.data.course import Course
from pretrain.data.loader import StepLoader
from pretrain.data.prepare.build import prepare, verify
from pretrain.data.stream import HeldOut, TrainStream
from pretrain.data.vocabulary import load_vocabulary
from pretrain.distributed.world import World, device_type, rank, world_size
from pretrain.errors import check
from pretrain.hub.generation_config import generation_settings, rules_of
from pretrain.init_from import InitialWeights, warn_of_other_pairs, weights_from
from pretrain.models.base import Attend, Model
from pretrain.objectives.base import Objective, TokenLossConfig
from pretrain.objectives.cross_entropy import chunk_for
from pretrain.optim.schedule import LearningRate
from pretrain.strategy.base import Memory
from pretrain.train.advice import advise
from pretrain.train.batch_growth import GrowthConfig, growth_fingerprints
from pretrain.train.branches.base import FIRST_STEP, BranchData, Origin, first_data_step
from pretrain.train.branches.begin import begin_branch
from pretrain.train.detours.base import Detour, fingerprint, skipped
from pretrain.train.detours.divergence import Watch
from pretrain.train.detours.rewinding import detoured, shared_detours
from pretrain.train.early_stopping import EarlyStopping
from pretrain.train.evaluation.choices import ChoiceEvaluator
from pretrain.train.evaluation.evaluator import held_out_evaluator
from pretrain.train.evaluation.samples import Continuations, encoded_prompts
from pretrain.train.micro_batches import Passes, found, said
from pretrain.train.mirror.restore import is_mirrored
from pretrain.train.resuming import Fingerprints, network_defaults, network_fingerprints, resumes
from pretrain.train.room import memory_with_room
from pretrain.train.run_dir.base import TOKENIZER_FILE
from pretrain.train.run_dir.record import check_written_by
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
    source, origin = _source(cfg), _origin(cfg)
    # The record holds a name on the hub with its commit.
    record = {"init_from": source.name} if source and source.name != cfg.init_from else {}
    with Session.opened("pretrain", cfg, **record) as session:
        attempt = partial(_pretrain, cfg, session)
        while detoured(cfg.divergence, session.directory, session.world, partial(attempt, source, origin)):
            source, origin = _source(cfg), _origin(cfg)  # it may begin with its first weights again
    return cfg.run.directory


def _source(cfg: PretrainConfig) -> Source | None:
    """Return where first weights come from, on rank 0; None for random ones, and where a saved step has all."""
    if not cfg.init_from or resumes(cfg.run) or (rank() == 0 and is_mirrored(cfg.checkpoint, cfg.run)):
        return None
    source = find_source(cfg.init_from, first=rank() == 0)
    if source:
        check_written_by("pretrain", source.path)
    return source


def _origin(cfg: PretrainConfig) -> Origin | None:
    """Return what the run branches off; None if it does not, and where a saved step has all."""
    if not cfg.branch_from or resumes(cfg.run):
        return None
    origin = Origin.of(cfg.branch_from, cfg.run.root).resolved()
    check_written_by("pretrain", origin.run)
    return origin


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


@dataclass(frozen=True, kw_only=True)
class _Text:
    """The prepared text of a run, and what is measured of it."""

    corpora: dict[str, Path]
    file: Path  # of the tokenizer, the same in each of the corpora
    stream: TrainStream
    held_out: HeldOut
    tokenizer: Tokenizer
    vocabulary: Callable[[], Vocabulary]
    examples: Examples
    choices: Sequence[ChoiceSet]


def _opened(cfg: PretrainConfig) -> _Text:
    """Prepare what is not prepared yet, and open it. Raises what `prepare` raises, and `ConfigError`."""
    corpora = prepare(cfg.data.sources, cfg.tokenizer, cfg.data.prepare, seq_len=cfg.data.seq_len)
    corpus = next(iter(corpora.values()))
    stream = cfg.data.train_stream(corpora, cfg.seed)
    tokenizer, vocabulary = stream.manifest.tokenizer(corpus), cache(partial(load_vocabulary, corpus))
    return _Text(
        corpora=corpora,
        file=corpus / TOKENIZER_FILE,
        stream=stream,
        held_out=_held_out(cfg, corpora),
        tokenizer=tokenizer,
        vocabulary=vocabulary,
        examples=cfg.objective.examples(vocabulary, cfg.seed, cfg.data.seq_len),
        choices=load_choices(cfg.eval.choices, "eval.choices", tokenizer, stream.manifest.prefix, cfg.data.seq_len),
    )


def _pretrain(cfg: PretrainConfig, session: Session, source: Source | None, origin: Origin | None) -> None:
    world = session.world
    source = _shared(cfg, source, world)
    text = _opened(cfg)
    stream = text.stream
    inherited = origin.run if origin and cfg.branch.data == BranchData["continue"] else None
    detours = shared_detours(session.directory, world, inherited)
    start = first_data_step(cfg.run, origin, cfg.branch)
    course = course_of(cfg, detours, start)
    rate = rate_of(cfg, course)
    module = build_module(cfg, stream.manifest.vocab_size)
    size = ModelSize.of(module, stream.lengths)
    predicted = memory_with_room(size, cfg, world)
    passes = passes_of(cfg, stream.manifest.vocab_size, predicted, world)
    micro_batch_size, entry = _micro_batch(cfg, passes, session)
    initial = InitialWeights(module, cfg.seed)
    fingerprints = fingerprints_of(cfg, stream, detours, start)
    unsaid = network_defaults(cfg.model) | growth_fingerprints(GrowthConfig())
    if origin:
        entry |= begin_branch(origin, session, initial.shapes, fingerprints, unsaid, detours)
    trainee = session.build(
        module,
        fingerprints,
        shapes=initial.shapes,
        first_weights=lambda: (
            weights_from(source, initial, fingerprints, world, tokenizer=text.file) if source else initial
        ),
        rate=rate,
        unsaid=unsaid,
        accept_changed=cfg.data.accept_changed,
        planned_in=origin and origin.run,
    )
    computing = session.begin(
        cfg.model,
        size,
        tokenizer=text.file.read_bytes(),
        decoder_start=cfg.objective.decoder_start(text.vocabulary),
        **_recorded(text),
        **_generation(source, stream.manifest.vocab_size),
        **entry,
    )
    if session.directory:
        advise(cfg, stream, text.tokenizer, session.directory.path)
        log.info(_plan(cfg, size, passes, micro_batch_size, rate, course, computing, stream, text.held_out))
    hooks = session.hooks(
        trainee,
        size=size,
        num_steps=cfg.train.steps,
        **_measuring(cfg, text, trainee.model, module.model, micro_batch_size, world),
        save_every=cfg.checkpoint.every,
        stopping=EarlyStopping(metric="loss", lower_is_better=True, patience=cfg.eval.patience),
        save_best=cfg.eval.saves_best,
        predicted=predicted,
        watch=Watch(cfg.divergence),
        course=course,
    )
    with steps_of(cfg, stream, text.examples, course, trainee.state.step, micro_batch_size, world) as steps:
        session.train(trainee, steps, rate.multiplier, hooks, cfg.train, evaluate_first=cfg.eval.at_start)


def _shared(cfg: PretrainConfig, source: Source | None, world: World) -> Source | None:
    """Return the source of first weights on all ranks, from the first one's. A collective."""
    if source := shared_source(source, world):
        warn_of_other_pairs(source, cfg.objective)
    return source


def course_of(cfg: PretrainConfig, detours: Sequence[Detour], start: int) -> Course:
    """Return which slots of the data each optimizer step takes; the data begin at the data step `start`."""
    return Course(cfg.train.sizes, skipped(detours), start)


def rate_of(cfg: PretrainConfig, course: Course) -> LearningRate:
    """Return the learning rate of each optimizer step."""
    return LearningRate(cfg.optim.lr, cfg.schedule, cfg.train.steps, cfg.train.lr_factor(course))


def _held_out(cfg: PretrainConfig, corpora: dict[str, Path]) -> HeldOut:
    """Return the held-out text. Raises `ConfigError` if there is none, and evaluations are needed."""
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


def _recorded(text: _Text) -> dict[str, Any]:
    """Return what run.json says of corpora, of token ids and of questions."""
    manifest = text.stream.manifest
    return {
        "corpora": {name: str(path.resolve()) for name, path in text.corpora.items()},
        "vocab_size": manifest.vocab_size,
        "document_frame": [manifest.prefix, manifest.suffix],
        "mask": manifest.mask,
        "choices": {each.name: {"questions": len(each.answers), "chance": each.chance} for each in text.choices},
    }


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
    rate: LearningRate,
    course: Course,
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
        course=course,
        learning_rate=rate,
        world=world,
        computing=computing,
        stream=stream,
        held_out=held_out,
        compiled=cfg.compile.described(world.device.type, cfg.strategy),
    )


def fingerprints_of(cfg: PretrainConfig, stream: TrainStream, detours: Sequence[Detour], start: int) -> Fingerprints:
    """Return what a resumed run must find unchanged: the order of its data, its network, the kind of its moments."""
    order = {**stream.fingerprint, "seed": cfg.seed, "train.batch_size": cfg.train.batch_size}
    changed = {**fingerprint(detours), **growth_fingerprints(cfg.train), **({FIRST_STEP: start} if start else {})}
    return {**order, **changed, **network_fingerprints(cfg.model, cfg.optim)}


def _measuring(
    cfg: PretrainConfig, text: _Text, wrapped: nn.Module, model: Model, micro_batch_size: int, world: World
) -> dict[str, Any]:
    """Return what the hooks measure of a model, which the strategy has wrapped, and how often."""
    manifest = text.stream.manifest
    longest = cfg.data.seq_len - cfg.eval.sample_tokens
    return {
        "evaluate_every": cfg.eval.every if text.held_out.num_slots else 0,
        "evaluator": held_out_evaluator(
            wrapped,
            cfg.objective,
            text.held_out,
            text.examples,
            micro_batch_size=micro_batch_size,
            max_slots=cfg.eval.max_slots,
            world=world,
        ),
        "choices": ChoiceEvaluator(
            module=wrapped,
            model=model,
            sets=text.choices,
            batch_tokens=micro_batch_size * cfg.data.seq_len,
            world=world,
        ),
        "continuations": Continuations(
            module=wrapped,
            model=model,
            tokenizer=text.tokenizer,
            prompts=encoded_prompts(cfg.eval.samples, text.tokenizer, manifest.prefix, longest),
            max_tokens=cfg.eval.sample_tokens,
            stop_id=next(iter(manifest.suffix or manifest.prefix), None),
            world=world,
        ),
    }


def steps_of(
    cfg: PretrainConfig,
    stream: TrainStream,
    examples: Examples,
    course: Course,
    start_step: int,
    micro_batch_size: int,
    world: World,
) -> StepLoader:
    """Return the batches of this rank from a step of the run on, around its detours, to its last step."""
    return StepLoader(
        stream,
        examples,
        course=course,
        micro_batch_size=micro_batch_size,
        rank=world.rank,
        world_size=world.size,
        start_step=start_step,
        num_steps=cfg.train.steps,
        pin=world.device.type == "cuda",
    )

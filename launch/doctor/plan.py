"""Checks of what a run is to do: its configuration, the arithmetic of its batches, its strategy, its memory.

Holds no rule of its own: each refusal comes from the part of the run that would refuse at its start.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import torch

from launch.doctor.base import Check, Finding, Subject, counted, graded, in_bytes
from pretrain.data.course import Course
from pretrain.data.lengths import Share
from pretrain.distributed.world import device_type
from pretrain.errors import HeadwaterError, ResourceError
from pretrain.registry import choices
from pretrain.strategy.compile import Scope
from pretrain.train.agreement import check_agreement, settings_of
from pretrain.train.micro_batches import said, shares_of
from pretrain.train.summary import ModelSize

TIGHT = 0.8  # share of a device's memory beyond which activations will hardly fit


@cache
def size_of(subject: Subject) -> ModelSize:
    """Measure the model, without the head of a task.

    Raises `HeadwaterError`s where its vocabulary or `init_from` cannot be read.
    """
    cfg = subject.cfg
    if subject.program == "pretrain":
        from pretrain.run import build_module

        return ModelSize.of(build_module(cfg, _vocab_size(cfg)), [Share(cfg.data.seq_len, 1.0)])
    from finetune.run import build_module
    from pretrain.trained.source import open_source

    source = open_source(cfg.init_from)
    module = build_module(cfg, source.network, source.vocab_size, names=[])
    return ModelSize.of(module, [Share(cfg.task.max_tokens, 1.0)])


def _vocab_size(cfg: Any) -> int:
    """Return the vocabulary size of the prepared corpora, else of the tokenizer that will prepare them."""
    from tokenizers import Tokenizer

    from pretrain.data.manifest import Manifest
    from pretrain.data.prepare.cache_key import corpus_directories, fitting, texts_of
    from pretrain.tokenizer.base import ReadyTokenizer, TrainedTokenizer

    sources, texts = cfg.data.sources, texts_of(cfg.data.sources)
    for directory in corpus_directories(sources, texts, cfg.tokenizer, cfg.data.prepare).values():
        if (directory / "manifest.json").exists():
            return Manifest.load(directory).vocab_size
    if isinstance(cfg.tokenizer, ReadyTokenizer):
        return max(Tokenizer.from_str(cfg.tokenizer.to_json()).get_vocab(with_added_tokens=True).values()) + 1
    tokenizer = fitting(cfg.tokenizer, texts)
    assert isinstance(tokenizer, TrainedTokenizer)
    return tokenizer.vocab_size


def _configuration(subject: Subject) -> str:
    run = subject.cfg.run
    return f"{subject.program} as run {run.name} in {run.root}; the same on {subject.named(range(subject.world.size))}"


def _batch(subject: Subject) -> str:
    cfg, ranks = subject.cfg, counted(subject.world.size, "rank")
    if subject.program == "finetune":
        limit = f"in passes of at most {cfg.train.max_tokens:,} tokens"
        return f"{cfg.train.batch_size:,} examples a step over {ranks}, {limit}"
    size = said(cfg.train, cfg.data.seq_len, subject.world.size)
    share = max(shares_of(cfg.train, subject.world.size))
    passes = "as many passes as memory needs" if size is None else f"{share // size} x {size}"
    cfg.schedule.build(cfg.train.steps)
    tokens, taken = cfg.train.batch_size * cfg.data.seq_len, Course(cfg.train.sizes).taken(cfg.train.steps)
    grown = (
        f" after smaller ones from {cfg.train.sizes[0].slots * cfg.data.seq_len:,} on" if cfg.train.batch_growth else ""
    )
    return (
        f"{cfg.train.batch_size:,} sequences a step = {passes} on each of {ranks}; "
        f"{tokens:,} tokens a step{grown}, {taken * cfg.data.seq_len:,} in {cfg.train.steps:,} steps"
    )


def _strategy(subject: Subject) -> str:
    cfg, kind = subject.cfg, device_type()
    cfg.attention.build()
    cfg.strategy.check_machine(ranks=subject.world.size, device_type=kind, precision=cfg.precision)
    cfg.precision.check_machine(device_type=kind, compiles=cfg.compile.on(kind, cfg.strategy) is not Scope.none)
    _, precision = choices()[type(cfg.precision)]
    return f"strategy={cfg.strategy.title} precision={precision} on {counted(subject.world.size, 'rank')} ({kind})"


def _memory(subject: Subject) -> int:
    """Return the bytes of a rank's GPU, or its share of the host's memory."""
    if subject.device.type == "cuda":
        return torch.cuda.get_device_properties(subject.device).total_memory
    sharing = subject.hosts.count(subject.hosts[subject.world.rank])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // sharing


def _judge_memory(subject: Subject, answers: list[int]) -> list[Finding]:
    try:
        size = size_of(subject)
    except HeadwaterError as error:
        return graded("not predicted", warning=f", as the size of the model is unknown: {error}")
    cfg, least = subject.cfg, min(answers)
    needed = sum(size.memory(cfg.strategy, ranks=subject.world.size, precision=cfg.precision))
    place = "its GPU" if subject.device.type == "cuda" else "its share of the host's memory"
    text = (
        f"{size.parameters:,} parameters: {in_bytes(needed)} a rank for weights, gradients and moments, "
        f"of {in_bytes(least)} in {place}"
    )
    fix = "take more ranks with a strategy that shards (strategy=zero2, zero3 or fsdp2)"
    if needed > least:
        return graded(text, failed=f": it does not fit; {fix}", code=ResourceError.exit_code)
    tight = f", which leaves little for activations; {fix}" if needed > TIGHT * least else ""
    return graded(text if tight else f"{text}; activations come on top", warning=tight)


CHECKS = [
    Check(
        "configuration",
        _configuration,
        agree=lambda subject, _: check_agreement(settings_of(subject.cfg), subject.world),
    ),
    Check("batch", _batch),
    Check("strategy", _strategy),
    Check("memory", _memory, _judge_memory),
]

"""Checks of what a run is to do: its configuration, the arithmetic of its batches, its strategy, its memory.

Holds no policy of its own: each refusal is that of the part which would refuse at the start of the run.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch

from launch.doctor.base import Check, Finding, Level, Subject, counted, grouped, in_bytes
from pretrain.data.loader import micro_batches_per_step
from pretrain.distributed.world import device_type
from pretrain.errors import HeadwaterError
from pretrain.registry import choices, flattened, plain

TIGHT = 0.8  # share of a device's memory beyond which activations will hardly fit


class Size(NamedTuple):
    """What a model takes, known before it exists."""

    parameters: int
    learnt: int  # those that an optimizer updates

    @property
    def checkpoint_bytes(self) -> int:
        """Return the size of a saved step: fp32 weights, and the two moments of AdamW of what is learnt."""
        return 4 * self.parameters + 8 * self.learnt


@cache
def size_of(subject: Subject) -> Size:
    """Count the parameters of the model, the head of a task apart.

    Raises `HeadwaterError`s where its vocabulary or its source cannot be read.
    """
    cfg = subject.cfg
    if subject.program == "pretrain":
        from pretrain.run import build_module

        module = build_module(cfg, _vocab_size(cfg))
    else:
        from pretrain.init_from import open_source

        source = open_source(cfg.init_from)
        with torch.device("meta"):
            module = source.network.build(vocab_size=source.vocab_size, attend=cfg.attention.build(), head=False)
            cfg.tuning.prepare(module)
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in module.parameters()]
    return Size(sum(count for count, _ in counts), sum(count for count, learns in counts if learns))


def _vocab_size(cfg: Any) -> int:
    """Return the ids of the corpora that are prepared, else of the tokenizer that they will be prepared with."""
    from tokenizers import Tokenizer

    from pretrain.data.manifest import Manifest
    from pretrain.data.prepare.cache_key import corpus_directories, texts_of
    from pretrain.tokenizer.base import ReadyTokenizer

    sources = cfg.data.sources
    for directory in corpus_directories(sources, texts_of(sources), cfg.tokenizer, cfg.data.prepare).values():
        if (directory / "manifest.json").exists():
            return Manifest.load(directory).vocab_size
    if isinstance(cfg.tokenizer, ReadyTokenizer):
        return max(Tokenizer.from_str(cfg.tokenizer.to_json()).get_vocab(with_added_tokens=True).values()) + 1
    return cfg.tokenizer.vocab_size


def _settings(subject: Subject) -> dict[str, Any]:
    return flattened(plain(subject.cfg))


def _judge_settings(subject: Subject, answers: list[dict[str, Any]]) -> list[Finding]:
    first = answers[0]
    keys = dict.fromkeys(key for answer in answers for key in answer)
    split = [key for key in keys if any(answer.get(key) != first.get(key) for answer in answers)]
    findings = []
    for key in split:
        values = grouped([answer.get(key) for answer in answers])
        told = "; ".join(f"{value} on {subject.named(numbers)}" for value, numbers in values)
        text = f"{key} differs: {told}; give all ranks the same command and the same files"
        findings.append(Finding("configuration", Level.failed, text))
    run = subject.cfg.run
    text = f"{subject.program} as run {run.name} in {run.root}; the same on {subject.named(range(len(answers)))}"
    return findings or [Finding("configuration", Level.ok, text)]


def _batch(subject: Subject) -> str:
    cfg, ranks = subject.cfg, subject.ranks
    if subject.program == "finetune":
        return (
            f"{cfg.train.batch_size:,} examples a step over {counted(ranks, 'rank')}, "
            f"in passes of at most {cfg.train.max_tokens:,} tokens"
        )
    count = micro_batches_per_step(cfg.train.batch_size, cfg.train.micro_batch_size, ranks)
    cfg.schedule.build(cfg.train.steps)
    tokens = cfg.train.batch_size * cfg.data.seq_len
    share = f"{count} x {cfg.train.micro_batch_size} on each of {counted(ranks, 'rank')}"
    return (
        f"{cfg.train.batch_size:,} sequences a step = {share}; "
        f"{tokens:,} tokens a step, {tokens * cfg.train.steps:,} in {cfg.train.steps:,} steps"
    )


def _strategy(subject: Subject) -> str:
    cfg, kind = subject.cfg, device_type()
    cfg.attention.build()
    cfg.strategy.check_machine(ranks=subject.ranks, device_type=kind, precision=cfg.precision)
    (_, strategy), (_, precision) = (choices()[type(choice)] for choice in (cfg.strategy, cfg.precision))
    return f"strategy={strategy} precision={precision} on {counted(subject.ranks, 'rank')} ({kind})"


def _memory(subject: Subject) -> dict[str, Any]:
    """Return what a rank's device has; on the first rank, what the strategy predicts besides."""
    if subject.device.type == "cuda":
        found: dict[str, Any] = {"has": torch.cuda.get_device_properties(subject.device).total_memory}
    else:
        sharing = subject.hosts.count(subject.hosts[subject.world.rank])
        found = {"has": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // sharing}
    if subject.world.is_first:
        try:
            size = size_of(subject)
        except HeadwaterError as error:
            return found | {"unknown": str(error)}
        cfg = subject.cfg
        whole, learnt = (cfg.strategy.memory(count, ranks=subject.ranks, precision=cfg.precision) for count in size)
        found |= {"parameters": size.parameters, "needs": whole.weights + learnt.gradients + learnt.optimizer}
    return found


def _judge_memory(subject: Subject, answers: list[dict[str, Any]]) -> list[Finding]:
    first, least = answers[0], min(answer["has"] for answer in answers)
    if "unknown" in first:
        return [Finding("memory", Level.warning, f"not predicted, for want of the model's size: {first['unknown']}")]
    place = "its GPU" if subject.device.type == "cuda" else "its share of the host's memory"
    text = (
        f"{first['parameters']:,} parameters: {in_bytes(first['needs'])} a rank for weights, gradients and moments, "
        f"of {in_bytes(least)} in {place}"
    )
    if first["needs"] <= TIGHT * least:
        return [Finding("memory", Level.ok, f"{text}; activations come on top")]
    fix = "take more ranks with a strategy that shards (strategy=zero2, zero3 or fsdp2)"
    if first["needs"] > least:
        return [Finding("memory", Level.failed, f"{text}: it does not fit; {fix}", 8)]
    return [Finding("memory", Level.warning, f"{text}, which leaves little for activations; {fix}")]


def _told(name: str) -> Callable[[Subject, list[str]], list[Finding]]:
    """Return a judge that takes the first rank's word."""
    return lambda subject, answers: [Finding(name, Level.ok, answers[0])]


CHECKS = [
    Check("configuration", _settings, _judge_settings),
    Check("batch", _batch, _told("batch")),
    Check("strategy", _strategy, _told("strategy")),
    Check("memory", _memory, _judge_memory),
]

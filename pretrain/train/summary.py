"""The plan: what a run is about to do, in a dozen lines, before the first step is paid for.

Holds words and arithmetic; nothing here decides anything.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from torch.cuda import nccl

from pretrain.data.course import Course
from pretrain.data.lengths import Share
from pretrain.data.stream import HeldOut, TrainStream
from pretrain.distributed.world import World
from pretrain.objectives.base import Objective
from pretrain.optim.schedule import LearningRate
from pretrain.registry import choices
from pretrain.settings.options import version_of
from pretrain.strategy.base import Memory, StrategyConfig
from pretrain.strategy.precision import Precision
from pretrain.train.batch_growth import GrowthConfig
from pretrain.train.loop import AUTO, TrainConfig
from pretrain.train.micro_batches import Needs

TOLERANCE = 0.1  # of predicted memory: communication buffers and the batches that wait
UNMENTIONED = 64 * 2**20  # bytes of difference that no user needs to hear of
_LIBRARIES = ("torch", "accelerate", "deepspeed", "hydra-core", "tokenizers", "pyarrow", "numpy", "safetensors")


log = logging.getLogger(__name__)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that take part in training, with CUDA's where there is one.

    Of one that is missing it says so: only what is used has to be installed.
    """
    found = {"python": platform.python_version(), **{name: version_of(name) for name in _LIBRARIES}}
    if torch.cuda.is_available():
        found["cuda"] = str(torch.version.cuda)
        found["nccl"] = ".".join(map(str, nccl.version()))  # the library that is loaded
    return found


class ModelSize(NamedTuple):
    """What a model costs, known before a strategy cuts it."""

    parameters: int  # tied ones once
    trainable: int  # those that an optimizer updates
    flops_per_token: float  # forward and backward, without what frozen parameters spare

    @classmethod
    def of(cls, module: Objective, lengths: Iterable[Share]) -> ModelSize:
        """Measure a module on the meta device, for tokens in sequences of these lengths."""
        parameters = list(module.parameters())
        trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
        flops = sum(share * module.flops_per_token(length) for length, share in lengths)
        return cls(sum(parameter.numel() for parameter in parameters), trainable, flops)

    def memory(self, strategy: StrategyConfig, *, ranks: int, precision: Precision) -> Memory:
        """Predict what a rank holds: all weights, but gradients and moments only of what is trainable."""
        counts = (self.parameters, self.trainable)
        whole, trainable = (strategy.memory(count, ranks=ranks, precision=precision) for count in counts)
        return Memory(whole.weights, trainable.gradients, trainable.optimizer)


def plan(rows: Iterable[tuple[str, str]]) -> str:
    """Return facts with their names, one a line; a name that is empty goes on with the one above."""
    return "\n".join(f"{name:>10}  {fact}" for name, fact in rows)


def summary(
    *,
    directory: Path,
    size: ModelSize,
    memory: Memory,
    needs: Needs | None,  # the same with a micro-batch, where that is predicted
    seq_len: int,  # tokens in a slot
    train: GrowthConfig,
    course: Course,
    micro_batch_size: int,  # sequences
    learning_rate: LearningRate,
    world: World,
    computing: str,  # see `start_kernels`
    stream: TrainStream,
    held_out: HeldOut,
    compiled: str,  # what is
) -> str:
    """Return the plan of pretraining."""
    tokens = train.batch_size * seq_len
    total = course.taken(train.steps) * seq_len
    micro_batches = train.batch_size // micro_batch_size // world.size
    how = _how(train, micro_batch_size * seq_len)
    micro = f"{counted(micro_batches, 'micro-batch', 'es')} of {micro_batch_size}{how}"
    ranks = f" on each of {world.size} ranks" if world.size > 1 else ""
    epochs = stream.epochs(course.num_slots(train.steps))
    rows = [
        ("run", f"{directory}: {train.steps:,} steps, {total:,} tokens, {total * size.flops_per_token:.3g} FLOPs"),
        ("model", f"{size.parameters:,} parameters, {size.flops_per_token:.3g} FLOPs a token (forward and backward)"),
        ("memory", of_memory(memory, needs)),
        ("step", f"{tokens:,} tokens = {train.batch_size} sequences x {seq_len}: {micro}{ranks} ({world.device.type})"),
        *([("", _smaller(train))] if train.batch_growth else []),
        ("compute", computing),
        ("lr", of_rate(learning_rate)),
        ("compile", compiled),
    ]
    for number, source in enumerate(stream.sources):
        sizes = f"{source.corpus.num_tokens:,} tokens in {source.corpus.num_documents:,} documents"
        rows.append(("" if number else "corpus", f"{source.name}: {sizes}, {epochs[source.name]:.2f} epochs"))
    rows.append(("held out", f"{held_out.num_targets:,} tokens, {held_out.text_bytes:,} bytes of text"))
    return plan(rows)


def of_rate(rate: LearningRate) -> str:
    """Say how the learning rate begins and ends."""
    warmup = rate.schedule.in_steps(rate.total_steps).warmup_steps
    after = f" after {counted(warmup, 'step')} of warm-up" if warmup else ""
    name = choices()[type(rate.schedule)][1]
    return f"{rate.peak:.2e}{after}, {rate.at(rate.total_steps - 1):.2e} in the last step (schedule={name})"


def _smaller(train: GrowthConfig) -> str:
    """Say which sizes batches have before the last one."""
    ends = (f"{before.slots} up to step {after.step:,}" for before, after in pairwise(train.sizes))
    return f"before it {', '.join(ends)} (train.batch_lr={train.batch_lr.value})"


def _how(train: TrainConfig, tokens: int) -> str:
    """Say why micro-batches have so many tokens, if not because that many sequences were asked for."""
    if train.micro_batch_tokens is not None:
        return f" ({tokens:,} tokens of train.micro_batch_tokens={train.micro_batch_tokens:,})"
    return f" ({tokens:,} tokens, found)" if train.micro_batch_size == AUTO else ""


def of_memory(memory: Memory, needs: Needs | None = None) -> str:
    """Say what a rank will hold; `needs` says what a micro-batch adds, at most."""
    parts = memory._asdict()
    if needs is not None:
        parts |= {"activations": needs.added.saved, "workspace": needs.added.workspace + needs.buffers}
    total = sum(parts.values())
    unit, name = (2**30, "GiB") if total > 2**33 else (2**20, "MiB")
    digits = 0 if total > 100 * unit else 1
    shown = ", ".join(f"{part} {size / unit:,.{digits}f}" for part, size in parts.items())
    rest = "; activations come on top" if needs is None else "; compiled blocks take less"
    return f"{total / unit:,.{digits}f} {name} a rank: {shown}{rest}"


def counted(number: int, noun: str, plural: str = "s") -> str:
    """Return `1 step`, `2 steps`."""
    return f"{number:,} {noun}{'' if number == 1 else plural}"


def compare_memory(held: int, predicted: Memory) -> None:
    """Log the bytes of tensors that the fullest rank holds between two steps beside the prediction; warn above it.

    The prediction is for the end of a backward pass. Between steps gradients, copies and buffers may be freed.
    """
    most = sum(predicted)
    measured = f"tensors of {_mib(held)} MiB on the fullest rank"
    text = f"memory after the first steps: {measured}, predicted {_mib(most)} with gradients"
    if held - most > max(TOLERANCE * most, UNMENTIONED):
        log.warning("%s; other tensors are alive, or the prediction is wrong", text)
    else:
        log.info("%s", text)


def _mib(size: float) -> str:
    return f"{size / 2**20:,.0f}"

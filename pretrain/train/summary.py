"""What a run is about to do, in a dozen lines, before the first step is paid for.

Holds words and arithmetic; nothing here decides anything.
"""

from __future__ import annotations

import logging
import platform
from importlib.metadata import version
from typing import NamedTuple

import torch
from torch.cuda import nccl

from pretrain.data.stream import HeldOut, TrainStream
from pretrain.distributed.world import World
from pretrain.objectives.base import Objective
from pretrain.strategy.base import Memory, StrategyConfig
from pretrain.strategy.precision import Precision
from pretrain.train.loop import TrainConfig
from pretrain.train.metrics import MFU_CONVENTION

TOLERANCE = 0.1  # of predicted memory: communication buffers and the batches that wait
UNMENTIONED = 64 * 2**20  # bytes of difference that no user needs to hear of
_LIBRARIES = ("torch", "accelerate", "deepspeed", "hydra-core", "tokenizers", "pyarrow", "numpy", "safetensors")


log = logging.getLogger(__name__)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that take part in training, with CUDA's where there is one."""
    found = {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}}
    if torch.cuda.is_available():
        found["cuda"] = str(torch.version.cuda)
        found["nccl"] = ".".join(map(str, nccl.version()))  # the library that is loaded
    return found


class ModelSize(NamedTuple):
    """What a model costs, known before a strategy cuts it."""

    parameters: int  # tied ones once
    trainable: int  # those that an optimizer updates
    flops_per_token: float  # forward and backward

    @classmethod
    def of(cls, module: Objective, context: float, compute_share: float = 1.0) -> ModelSize:
        """Measure a module on the meta device, for tokens in sequences of `context` tokens on average.

        `compute_share` is that of the operations which remain where parameters are frozen.
        """
        parameters = list(module.parameters())
        trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
        flops = compute_share * module.flops_per_token(context)
        return cls(sum(parameter.numel() for parameter in parameters), trainable, flops)

    def memory(self, strategy: StrategyConfig, *, ranks: int, precision: Precision) -> Memory:
        """Predict what a rank holds: all weights, but gradients and moments only of what is trainable."""
        counts = (self.parameters, self.trainable)
        whole, trainable = (strategy.memory(count, ranks=ranks, precision=precision) for count in counts)
        return Memory(whole.weights, trainable.gradients, trainable.optimizer)


def summary(
    *,
    size: ModelSize,
    memory: Memory,
    seq_len: int,  # tokens in a slot
    train: TrainConfig,
    world: World,
    stream: TrainStream,
    held_out: HeldOut,
) -> str:
    """Return the start-up summary, one fact a line."""
    tokens = train.batch_size * seq_len
    micro_batches = train.batch_size // train.micro_batch_size // world.size
    epochs = stream.epochs(train.steps * train.batch_size)
    corpus = [
        f"{source.name}: {source.corpus.num_tokens:,} tokens in {source.corpus.num_documents:,} documents, "
        f"{epochs[source.name]:.2f} epochs"
        for source in stream.sources
    ]
    rows = {
        "model": f"{size.parameters:,} parameters, {size.flops_per_token:.3g} FLOPs a token (forward and backward)",
        "memory": f"{sum(memory) / 2**20:,.0f} MiB a rank: weights {memory.weights / 2**20:,.0f}, gradients "
        f"{memory.gradients / 2**20:,.0f}, optimizer {memory.optimizer / 2**20:,.0f}; activations come on top",
        "step": f"{tokens:,} tokens = {train.batch_size} sequences x {seq_len}: {micro_batches} micro-batches of "
        f"{train.micro_batch_size} on each of {world.size} ranks ({world.device.type})",
        "run": f"{train.steps:,} steps, {train.steps * tokens:,} tokens, "
        f"{train.steps * tokens * size.flops_per_token:.3g} FLOPs",
        "corpus": "; ".join(corpus),
        "held out": f"{held_out.num_targets:,} tokens, {held_out.text_bytes:,} bytes of text",
        "versions": ", ".join(f"{name} {number}" for name, number in versions().items()),
        "mfu": MFU_CONVENTION,
    }
    return "\n".join(f"{name:>9}  {text}" for name, text in rows.items())


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

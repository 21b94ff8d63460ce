"""What a run is about to do, in a dozen lines, before the first step is paid for.

Holds words and arithmetic; nothing here decides anything.
"""

from __future__ import annotations

import platform
from importlib.metadata import version

from torch import nn

from pretrain.data.stream import HeldOut, TrainStream
from pretrain.distributed import World
from pretrain.loop import TrainConfig
from pretrain.metrics import MFU_CONVENTION

_LIBRARIES = ("torch", "accelerate", "deepspeed", "hydra-core", "tokenizers", "pyarrow")
_BYTES_PER_PARAMETER = 16  # fp32 weight, gradient and two AdamW moments


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that take part in training."""
    return {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}}


def num_parameters(module: nn.Module) -> int:
    """Return the number of trainable parameters, tied ones once."""
    return sum(parameter.numel() for parameter in module.parameters())


def summary(
    *,
    parameters: int,
    flops_per_token: float,  # forward and backward
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
        "model": f"{parameters:,} parameters, {flops_per_token:.3g} FLOPs a token (forward and backward)",
        "memory": f"{parameters * _BYTES_PER_PARAMETER / 2**20:,.0f} MiB of weights, gradients and moments a rank",
        "step": f"{tokens:,} tokens = {train.batch_size} sequences x {seq_len}: {micro_batches} micro-batches of "
        f"{train.micro_batch_size} on each of {world.size} ranks ({world.device.type})",
        "run": f"{train.steps:,} steps, {train.steps * tokens:,} tokens, "
        f"{train.steps * tokens * flops_per_token:.3g} FLOPs",
        "corpus": "; ".join(corpus),
        "held out": f"{held_out.num_targets:,} tokens, {held_out.text_bytes:,} bytes of text",
        "versions": ", ".join(f"{name} {number}" for name, number in versions().items()),
        "mfu": MFU_CONVENTION,
    }
    return "\n".join(f"{name:>9}  {text}" for name, text in rows.items())

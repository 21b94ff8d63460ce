"""What tensors of this process take up, against what its strategy predicted.

Holds the measurement and the comparison; the formulas are the strategies' own.
"""

from __future__ import annotations

import gc
import logging
from contextlib import suppress

import torch

from pretrain.strategy.base import Memory

TOLERANCE = 0.1  # of the prediction: communication buffers and the batches that wait
UNMENTIONED = 64 * 2**20  # bytes of difference that no user needs to hear of

log = logging.getLogger(__name__)


def storages() -> dict[int, int]:
    """Return address and bytes of every storage, on any device, that a tensor known to Python refers to."""
    gc.collect()
    found: dict[int, int] = {}
    # By type, for asking objects for their class makes some of them warn or import.
    for tensor in [each for each in gc.get_objects() if issubclass(type(each), torch.Tensor)]:
        for part in (tensor, tensor.grad) if tensor.is_leaf and tensor.grad is not None else (tensor,):
            with suppress(RuntimeError):  # sparse tensors, and stand-ins while torch compiles, have no storage to see
                storage = (part.to_local() if hasattr(part, "to_local") else part).untyped_storage()
                if storage.device.type != "meta":
                    found[storage.data_ptr()] = storage.nbytes()
    return found


def compare(held: int, predicted: Memory) -> None:
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

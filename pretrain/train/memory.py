"""What tensors take up on a GPU, against what a strategy predicted.

Holds the comparison; the formulas are the strategies' own.
"""

from __future__ import annotations

import logging

from pretrain.strategy.base import Memory

TOLERANCE = 0.1  # of the prediction: communication buffers and the batches that wait
UNMENTIONED = 64 * 2**20  # bytes of difference that no user needs to hear of

log = logging.getLogger(__name__)


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

"""Metrics that have no finite value on the data or the model that they measure: said once, with the reason.

Holds no metric; those who compute one know why it has none.
"""

from __future__ import annotations

import logging
import math
from functools import cache

log = logging.getLogger(__name__)


def no_value(*names: str, why: str) -> dict[str, float]:
    """Return NaN for each of some metrics, and log on rank 0 why they have no value: once, however often it is so."""
    _say(f"{', '.join(names)}: no value: {why}")
    return dict.fromkeys(names, math.nan)


@cache
def _say(text: str) -> None:
    from pretrain.distributed.world import rank  # it imports torch, which a page of help does without

    if rank() == 0:  # all ranks measure the same
        log.warning("%s", text)

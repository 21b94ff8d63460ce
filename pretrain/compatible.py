"""Which choices of how fast go together: what an optimizer, a strategy, a precision and attention ask of each other.

Holds the rules that none of them can check alone; both root configurations ask them.
"""

from __future__ import annotations

from typing import Any

from pretrain.errors import check
from pretrain.models.attention.flash import HALF, FlashConfig
from pretrain.models.attention.flex import FlexConfig
from pretrain.strategy.precision import Precision


def check_compatible(
    *, optim: Any, strategy: Any, precision: Precision, attention: Any, dropout: float, dropout_key: str
) -> None:
    """Raise `ConfigError` for choices that exclude each other; `dropout` is that of attention weights, and its key."""
    optim.check(shards=strategy.shards)
    if isinstance(attention, FlashConfig):
        rule = "attention=flash computes in half precision; set precision=bf16, or attention=sdpa"
        check(precision.dtype in HALF, "precision", str(precision.dtype), rule)
    if isinstance(attention, FlashConfig | FlexConfig):
        rule = "attention=flash and attention=flex have no dropout of weights; set 0, or attention=sdpa"
        check(dropout == 0, dropout_key, dropout, rule)

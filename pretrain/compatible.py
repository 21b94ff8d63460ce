"""Which choices of how fast go together: what an optimizer, a strategy, a precision and attention ask of each other.

Holds the rules that none of them can check alone; both root configurations ask them.
"""

from __future__ import annotations

from typing import Any

from pretrain.errors import check
from pretrain.registry import choices
from pretrain.strategy.precision import Precision


def check_compatible(
    *, optim: Any, strategy: Any, precision: Precision, attention: Any, dropout: float, dropout_key: str
) -> None:
    """Raise `ConfigError` for choices that exclude each other; `dropout` is that of attention weights, and its key."""
    rule = "updates whole matrices, of which this strategy gives a rank parts; use optim=adamw, or strategy=ddp"
    _, name = choices()[type(optim)]
    check(not (optim.whole_matrices and strategy.shards), "optim", name, rule)
    attention.check(dtype=precision.dtype, dropout=dropout, dropout_key=dropout_key)

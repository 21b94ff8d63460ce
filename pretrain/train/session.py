"""Where a run goes on: at its newest checkpoint, if that is of the same run.

Holds the comparison; checkpoints are read by `checkpoint`, weights to start from by `released`.
"""

from __future__ import annotations

import logging
from typing import Any

from pretrain.checkpoint.load import Shapes, load_state, newest_step, restore
from pretrain.checkpoint.save import Checkpoints
from pretrain.errors import CheckpointError, DataError, check
from pretrain.strategy.base import Strategy

Fingerprints = dict[str, Any]
"""What a resumed run must find unchanged, and all ranks alike: a setting or a part of the data -> its plain value."""

log = logging.getLogger(__name__)


def resume(
    checkpoints: Checkpoints, strategy: Strategy, shapes: Shapes, fingerprints: Fingerprints, *, num_steps: int
) -> dict[str, Any] | None:
    """Fill the strategy from the newest checkpoint and return what was saved beside it; None if there is none.

    A collective. `shapes` are those of the whole module, `num_steps` those of the whole run. Raises `CheckpointError`
    or `DataError` for a checkpoint of another network, or of other data, by the name of what differs.
    """
    newest = newest_step(checkpoints.directory, checkpoints.world)
    if newest is None:
        return None
    saved = load_state(newest)
    for key in fingerprints | saved["resume"]:
        before, now = saved["resume"].get(key), fingerprints.get(key)
        if before != now:
            kind = CheckpointError if key.startswith(("model.", "optim")) else DataError
            rule = "which would make it another run; restore it, or choose another run.name"
            raise kind(f"{newest}: {key} was {before} and is now {now}, {rule}")
    rule = f"{newest} is past it; raise it to go on, or choose another run.name"
    check(saved["step"] <= num_steps, "train.steps", num_steps, rule)
    restore(newest, shapes, strategy)
    log.info("resuming from %s", newest)
    return saved

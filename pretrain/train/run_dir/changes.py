"""What a start changes of a run's settings since the last one, in the words that a user types.

Holds no judgement: which changes are refused is for `session` to say.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pretrain.errors import ConfigError, as_written
from pretrain.errors.redaction import redacted
from pretrain.registry import choices, flattened, plain
from pretrain.train.run_dir.record import choice_of, choices_of, read_config, read_nested_config


def changes(run: Path, cfg: Any) -> list[str]:
    """Name each choice and setting whose value is not that of the run's last start, with both values.

    `cfg` is the root configuration of this start.
    """
    before = read_config(run) | _chosen(read_nested_config(run).get("defaults"))
    now = flattened(redacted(plain(cfg))) | _chosen(choices_of(cfg))
    try:
        titles = choice_of(run, "strategy").title, cfg.strategy.title
    except ConfigError:  # there was no start before, or one with settings that are not known any more
        pass
    else:
        before["strategy"], now["strategy"] = titles
    changed = [key for key in now if key in before and before[key] != now[key]]
    return [f"{key}: {as_written(before[key])} -> {as_written(now[key])}" for key in changed]


def choice_name(key: str, value: Any) -> Any:
    """Return what a user types for a value that checkpoints have by the class of its settings: "muon"."""
    names = {kind.__name__: name for kind, (group, name) in choices().items() if group == key}
    return names.get(value, value) if isinstance(value, str) else value


def _chosen(defaults: Any) -> dict[str, Any]:
    """Return the name that each group has in a list of defaults, which a file may hold in any shape."""
    entries = defaults if isinstance(defaults, list) else []
    return {group: name for entry in entries if isinstance(entry, dict) for group, name in entry.items()}

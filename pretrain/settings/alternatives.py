"""Settings that say one thing in two ways: what is given later takes the place of what was given before.

Holds the rule; which settings these are, their dataclass says in `EITHER`. Two that are given in one place, one file or
one command line, contradict each other: the dataclass refuses them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import fields
from typing import Any

from omegaconf import DictConfig, OmegaConf


def taken_back(cfg: DictConfig, given: Collection[str]) -> Iterator[tuple[str, str]]:
    """Set to its default, in place, what the settings just `given`, by dotted key, say in another way.

    Yield the key of each such setting, and the KEY=VALUE that says it now.
    """
    for key in given:
        parent, _, name = key.rpartition(".")
        node = OmegaConf.select(cfg, parent) if parent else cfg
        kind: Any = OmegaConf.get_type(node)
        either: tuple[str, ...] = getattr(kind, "EITHER", ())
        if name not in either:
            continue
        defaults = {field.name: field.default for field in fields(kind)}
        values: dict[str, Any] = OmegaConf.to_container(node, resolve=False)  # pyright: ignore[reportAssignmentType]
        if values[name] == defaults[name]:
            continue
        for other in either:
            if f"{parent}.{other}" not in given and values[other] != defaults[other]:
                node[other] = defaults[other]
                yield f"{parent}.{other}", f"{key}={values[name]}"

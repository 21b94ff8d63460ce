"""Sweeps: settings with several values, expanded into one command line for each combination, by Hydra's own parser.

Holds words only; `jobs` composes them into configurations.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pretrain.errors import ConfigError
from pretrain.settings.grammar import parsed


class Point(NamedTuple):
    """One combination of values."""

    overrides: list[str]  # a whole command line
    values: dict[str, str]  # key -> value of the settings that have several, in their order


def expand(overrides: Sequence[str]) -> list[Point]:
    """Return the points of a sweep, the last setting changing fastest; one point if no setting has several values.

    Several values are written as in Hydra: `seed=1,2`, `seed=range(3)`, `seed=choice(1,2)`. Raises `ConfigError` for
    what cannot be parsed and for values that cannot be counted.
    """
    rows = [_values(word) for word in overrides]
    return [
        Point([word for _, word in chosen], {key: word.partition("=")[2] for key, word in chosen if key})
        for chosen in itertools.product(*rows)
    ]


def run_name(base: str, values: Mapping[str, str]) -> str:
    """Return the name of a run in a sweep: `demo-lr-1e-4-seed-0`, with full keys where their last words are equal."""
    leaves = [key.rpartition(".")[2] for key in values]
    short = len(set(leaves)) == len(leaves)
    parts = (f"{leaf if short else key}-{value}" for leaf, (key, value) in zip(leaves, values.items(), strict=True))
    return "-".join([base, *(re.sub(r"[^A-Za-z0-9._]+", "-", part).strip("-") for part in parts)])


def point_text(values: Mapping[str, str]) -> str:
    """Write the values of a point: `optim.lr=1e-4 seed=0`."""
    return " ".join(f"{key}={value}" for key, value in values.items())


def _values(word: str) -> list[tuple[str, str]]:
    """Return (key, word) for each value of a setting; for a word that is no sweep, that word without a key."""
    if word.startswith("-") or "=" not in word:  # an option of Hydra, its argument, or a deletion
        return [("", word)]
    override = parsed(word)
    if not override.is_sweep_override():
        return [("", word)]
    countable = override.is_discrete_sweep() and not word.partition("=")[2].startswith("glob(")
    values = list(override.sweep_string_iterator()) if countable else []
    key = override.get_key_element()
    if not values:
        raise ConfigError(f"{word}: no values to count; write them out (1,2,3) or as range(START,STOP,STEP)")
    return [(key, f"{key}={value}") for value in values]

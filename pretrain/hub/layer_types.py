"""Layers with a window and layers without one, as config.json says them: which are which, and what holds for a kind.

Holds what families with both kinds have in common; `rope` reads the rotary parameters of a kind.
"""

from __future__ import annotations

from typing import Any

from pretrain.hub.config_json import check_value
from pretrain.hub.family import Family
from pretrain.models.network import NetworkConfig

GLOBAL, LOCAL = "full_attention", "sliding_attention"


def layer_types(config: NetworkConfig) -> list[str]:
    """Return the kind of each layer."""
    return [GLOBAL if config.layer_window(layer) is None else LOCAL for layer in range(config.layers)]


def global_layers(family: Family, types: list[Any], layers: int) -> tuple[int | None, int]:
    """Return `global_every` and `global_first` of layers of these kinds: (None, 0) where all have a window.

    Raises `ConfigError` where those that see all keys do not come at equal distances, the first one soon enough.
    """
    places = [layer for layer, kind in enumerate(types) if kind == GLOBAL]
    every, first = None, 0
    if places:
        first = places[0]
        every = places[1] - first if len(places) > 1 else max(first + 1, layers - first)
    if types != [GLOBAL if every and layer % every == first else LOCAL for layer in range(layers)]:
        raise family.refusal("layer_types", types, f"one of {LOCAL} for each layer, but {GLOBAL} for every n-th, is")
    return every, first


def rope_of(family: Family, theirs: dict[str, Any], kind: str) -> tuple[str, dict[str, Any]]:
    """Return where a complete config.json says the rotary parameters of a kind of layers, and what it says there.

    Raises `ConfigError` for parameters of another kind.
    """
    rope = theirs["rope_parameters"] or {}
    for key in sorted(rope.keys() - {GLOBAL, LOCAL}):
        raise family.refusal(f"rope_parameters.{key}", rope[key], f"there are {GLOBAL} and {LOCAL}")
    key = f"rope_parameters.{kind}"
    check_value(key, rope.get(kind), dict | None)
    return key, rope.get(kind) or {}

"""Rotary positions as config.json says them: bases, shares and scalings, both ways.

Holds what families with rotary positions have in common; `models.rotary` computes the frequencies.
"""

from __future__ import annotations

from typing import Any

from pretrain.hub.config_json import check_value
from pretrain.hub.family import Family
from pretrain.models.network import NetworkConfig
from pretrain.models.rotary import RopeScaling, Scaling

_NAMES = {"none": "default"}  # of scalings there; others have one name
_LENGTH = "original_max_position_embeddings"
# Keys of a scaling beside its factor, and our settings; what is left out has our default.
_KEYS: dict[Scaling, dict[str, str]] = {
    Scaling.none: {},
    Scaling.linear: {},
    Scaling.llama3: {"low_freq_factor": "slow_turns", "high_freq_factor": "fast_turns", _LENGTH: "original_length"},
    Scaling.yarn: {
        "beta_slow": "slow_turns",
        "beta_fast": "fast_turns",
        _LENGTH: "original_length",
        "attention_factor": "attention_factor",
        "truncate": "truncate",
    },
}
_NEEDED = ("factor", "low_freq_factor", "high_freq_factor")  # of a scaling that has them
_KINDS = {_LENGTH: int, "truncate": bool}  # types of values; others are numbers


def rope_parameters(config: NetworkConfig) -> dict[str, Any]:
    """Return what config.json says of the rotary positions of layers that see all keys."""
    scaling, share = config.rope_scaling, config.rotary_share
    kind = scaling.kind
    found: dict[str, Any] = {"rope_type": _NAMES.get(kind.value, kind.value), "rope_theta": config.rope_theta}
    if share != 1:
        found["partial_rotary_factor"] = share
    if kind is Scaling.none:
        return found
    slow, fast = scaling.turns
    values = {**vars(scaling), "slow_turns": slow, "fast_turns": fast}
    own = {their: values[ours] for their, ours in _KEYS[kind].items() if values[ours] is not None}
    return {**found, "factor": scaling.factor, **own}


def rope_fields(
    family: Family, key: str, rope: dict[str, Any], *, theta: float | None, length: int, share: float = 1.0
) -> dict[str, Any]:
    """Return `rope_theta`, `rope_scaling` and `rotary_share` of the rotary parameters that a key of config.json holds.

    What they leave out: the base is `theta`, the `share` of rotated coordinates is as given, and texts before a
    scaling had `length` tokens. Raises `ConfigError` for scalings that we do not have.
    """
    name = rope.get("rope_type", rope.get("type", "default"))  # the second in older files
    types = {_NAMES.get(kind.value, kind.value): kind for kind in Scaling}
    if not isinstance(name, str) or name not in types:
        written = "rope_type" if "rope_type" in rope else "type"
        raise family.refusal(f"{key}.{written}", name, f"{', '.join(types)} are")
    kind = types[name]
    keys = {"factor": "factor", **_KEYS[kind]} if kind is not Scaling.none else {}
    known = {"rope_type", "type", "rope_theta", "partial_rotary_factor", _LENGTH, *keys}
    for unknown in sorted(rope.keys() - known):
        if rope[unknown]:
            raise family.refusal(f"{key}.{unknown}", rope[unknown], f"{name} frequencies have none")
    numbers: dict[str, Any] = {"rope_theta": theta, "partial_rotary_factor": share}
    if _LENGTH in keys:
        numbers[_LENGTH] = length
    for needed in [their for their in keys if their in _NEEDED and rope.get(their) is None]:
        raise family.refusal(f"{key}.{needed}", None, f"rope_type={name} needs one")
    read = {*numbers, *keys}
    given = {their: value for their, value in rope.items() if their in read}
    # A null is what is left out where numbers may be; transformers would take a null `truncate` for false.
    given = {their: value for their, value in given.items() if value is not None or their in _KINDS}
    values: dict[str, Any] = {**numbers, **given}
    for their, value in values.items():
        check_value(f"{key}.{their}", value, _KINDS.get(their, float))
    scaling = {ours: values[their] for their, ours in keys.items() if their in values}
    return {
        "rope_theta": float(values["rope_theta"]),
        "rotary_share": float(values["partial_rotary_factor"]),
        "rope_scaling": RopeScaling(kind=kind, **scaling).short(),
    }


def whole_rope_fields(
    family: Family, key: str, rope: dict[str, Any], *, theta: float | None, length: int
) -> dict[str, Any]:
    """Return the same without `rotary_share`. Raises `ConfigError` also where not whole heads are rotated."""
    found = rope_fields(family, key, rope, theta=theta, length=length)
    share = f"{key}.partial_rotary_factor"
    family.expect({share: found.pop("rotary_share")}, **{share: 1.0})
    return found


def rope_theta(family: Family, key: str, rope: dict[str, Any], theta: float) -> float:
    """Return the base of rotary parameters whose frequencies are not scaled and that rotate whole heads.

    It is `theta` where they leave it out. Raises `ConfigError` for others.
    """
    found = whole_rope_fields(family, key, rope, theta=theta, length=1)
    if (kind := found["rope_scaling"].kind) is not Scaling.none:
        raise family.refusal(f"{key}.rope_type", kind.value, "default is")
    return found["rope_theta"]

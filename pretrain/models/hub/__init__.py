"""Hugging Face layouts of our models: one file a family, names and configuration both ways."""

from __future__ import annotations

from typing import Any

from pretrain.errors import ConfigError
from pretrain.models.decoder import DecoderConfig
from pretrain.models.hub.base import Family, Part
from pretrain.models.hub.gpt2 import GPT2
from pretrain.models.hub.llama import Llama, Mistral
from pretrain.models.layers import Positions

FAMILIES: dict[str, Family] = {family.model_type: family for family in (GPT2(), Llama(), Mistral())}


def family_for(config: DecoderConfig) -> Family:
    """Return the family whose models compute what a decoder of this configuration computes, setting for setting.

    Raises `ConfigError` that names the first setting without a counterpart.
    """
    if config.positions is Positions.rotary:
        family = FAMILIES["llama" if config.window is None else "mistral"]
    else:
        family = FAMILIES["gpt2"]
    family.check(config)
    return family


def family_of(theirs: dict[str, Any]) -> Family:
    """Return the family of a Hugging Face `config.json`. Raises `ConfigError` for one that we do not have."""
    found = theirs.get("model_type")
    if found not in FAMILIES:
        raise ConfigError(f"model_type={found}: not an architecture of ours; there are {', '.join(FAMILIES)}")
    return FAMILIES[found]


__all__ = ["FAMILIES", "Family", "Part", "family_for", "family_of"]

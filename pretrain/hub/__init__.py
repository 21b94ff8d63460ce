"""Hugging Face families: names and configuration both ways, one file a family.

Holds the choice among them.
"""

from __future__ import annotations

from typing import Any

from pretrain.errors import ConfigError
from pretrain.hub.bert import Bert
from pretrain.hub.distilbert import DistilBert
from pretrain.hub.family import Family, Part, Tensors
from pretrain.hub.gpt2 import GPT2
from pretrain.hub.llama import Llama, Mistral
from pretrain.hub.modernbert import ModernBert
from pretrain.hub.roberta import Roberta

_ALL: tuple[Family, ...] = (GPT2(), Llama(), Mistral(), Bert(), Roberta(), DistilBert(), ModernBert())
FAMILIES: dict[str, Family] = {family.model_type: family for family in _ALL}


def family_for(config: Any) -> Family:
    """Return the family whose models compute what a model of this configuration computes, setting for setting.

    Raises `ConfigError` for a model that has none; it names the settings without a counterpart in the family that comes
    nearest.
    """
    differences = {family: list(family.differences(config)) for family in _ALL if isinstance(config, family.kind)}
    if not differences:
        raise ConfigError(
            f"{type(config).__name__}: has no counterpart among {', '.join(FAMILIES)}: this model cannot be exported"
        )
    nearest = min(differences, key=lambda family: len(differences[family]))
    if differences[nearest]:
        raise ConfigError(f"{'; '.join(differences[nearest])}: this model cannot be exported")
    return nearest


def family_of(theirs: dict[str, Any]) -> Family:
    """Return the family of a Hugging Face `config.json`. Raises `ConfigError` for one that we do not have."""
    found = theirs.get("model_type")
    if found not in FAMILIES:
        raise ConfigError(f"model_type={found}: not an architecture of ours; there are {', '.join(FAMILIES)}")
    return FAMILIES[found]


__all__ = ["FAMILIES", "Family", "Part", "Tensors", "family_for", "family_of"]

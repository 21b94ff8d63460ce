"""No setting of a network is lost on its way into a config.json: each comes back, is refused, or has no effect."""

from contextlib import suppress
from dataclasses import fields, replace
from enum import Enum

import pytest
from family_shapes import SHAPES, small_model
from small_models import VOCAB_SIZE

from pretrain.errors import ConfigError
from pretrain.hub.family import FAMILIES
from pretrain.models.decoder import MUP
from pretrain.models.network import TRAINING
from pretrain.models.rotary import RopeScaling, Scaling

# Settings that files say with their tensors, not in their config.json.
STORED = {"bart": "head_bias", "mbart": "head_bias", "marian": "head_bias", "t5": "tie_embeddings"}
SCALINGS = [
    RopeScaling(kind=Scaling.linear, factor=3.0),
    RopeScaling(kind=Scaling.llama3, factor=3.0, original_length=9, slow_turns=2.0, fast_turns=5.0),
    RopeScaling(kind=Scaling.yarn, factor=3.0, original_length=9, truncate=False, attention_factor=2.0),
]


def others(field, value):
    """Return other values of a setting that has a value."""
    if isinstance(value, Enum):
        return list(type(value))
    if field.name == "family":
        return FAMILIES
    if field.name == "rope_scaling":
        return SCALINGS
    if "bool" in field.type:
        return [True, False]
    return [0.25, 0.5, 9e4] if "float" in field.type else range(30)


def variants(config):
    """Yield configurations that differ from one in a single setting, with its name."""
    for field in fields(config):
        for value in others(field, getattr(config, field.name)):
            with suppress(ConfigError):  # a setting that contradicts the others
                yield field.name, replace(config, **{field.name: value})


def effect(config):
    """Return what a configuration computes: itself, and the windows of its layers in place of how they are counted."""
    windows = [config.layer_window(layer) for layer in range(config.layers)]
    named = {"family": None} if hasattr(config, "family") else {}
    return replace(config.plain(), global_every=None, global_first=0, **named), windows


@pytest.mark.parametrize("name", SHAPES)
def test_a_setting_comes_back_or_is_refused_unless_it_has_no_effect(name):
    family = FAMILIES[name.partition(",")[0]]
    base = small_model(name).config
    elsewhere = {*TRAINING, *MUP, STORED.get(family.model_type)} & vars(base).keys()  # muP: see test_absorbed
    written, refused = set(), set()
    for key, config in variants(base):
        if list(family.differences(config)):
            assert effect(config) != effect(base), key
            refused.add(key)
            continue
        back = family.from_hf(family.to_hf(config, VOCAB_SIZE))
        assert effect(replace(back, **{own: getattr(config, own) for own in elsewhere})) == effect(config), key
        if effect(config) != effect(base):
            written.add(key)
    assert {"width", "layers", "heads", "mlp_width"} <= written
    assert {"order", "positions", "norm", "bias"} & refused

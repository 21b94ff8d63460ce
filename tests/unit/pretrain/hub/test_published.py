"""The config.json of much used releases: read, built at the published size, and written as transformers reads it."""

import json

import pytest
import torch
import transformers
from published import PUBLISHED, REFUSED
from transformers import AutoConfig
from vocabularies import byte_level

from pretrain.compose import compose
from pretrain.errors import ConfigError
from pretrain.hub.family import FAMILIES, family_for
from pretrain.hub.weights import read_network
from pretrain.models.attention.sdpa import sdpa
from pretrain.objectives.replaced_tokens import ReplacedTokensConfig


def num_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def said_otherwise(family, key):
    """Whether a key is of our own training, has several spellings of one value, or is what a tokenizer says."""
    own = {*family.settings.training, family.settings.activation_key, "initializer_range", "architectures", "n_inner"}
    return key in own or key.endswith("_token_id")


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_release_has_its_published_size_and_goes_out_as_it_came(name, tmp_path):
    published, parameters = PUBLISHED[name]
    (tmp_path / "config.json").write_text(json.dumps(published))
    _, network, parts = read_network(tmp_path / "config.json")
    family = family_for(network)
    assert family.model_type == published["model_type"]
    exported = family.to_hf(network, published["vocab_size"])
    assert family.from_hf(exported).plain() == network.plain()
    before, after = (AutoConfig.for_model(**json.loads(json.dumps(file))) for file in (published, exported))
    for key in exported.keys() & after.to_dict().keys():
        assert said_otherwise(family, key) or getattr(before, key, exported[key]) == getattr(after, key), key
    [architecture] = published["architectures"]
    detects = architecture == "ElectraForPreTraining"  # what predicts tokens is not in it
    with torch.device("meta"):
        ours = network.build(vocab_size=published["vocab_size"], attend=sdpa, head=not detects)
        ours = ReplacedTokensConfig().build(ours) if detects else ours
        theirs = getattr(transformers, architecture)(after)
    assert num_parameters(ours) == num_parameters(theirs) == parameters
    assert detects or (exported["architectures"] == [architecture] and sum(part.numel for part in parts) == parameters)
    byte_level(["a text"]).save(str(tmp_path / "tokenizer.json"))
    assert compose([f"init_from={tmp_path}"]).model == network


def test_every_family_of_one_stack_has_a_release_here():
    stacks = {name for name, family in FAMILIES.items() if family.config_type.kind.value != "encoder_decoder"}
    assert {published["model_type"] for published, _ in PUBLISHED.values()} == stacks


@pytest.mark.parametrize("name", REFUSED)
def test_a_release_of_what_we_do_not_have_is_refused_by_name(name, tmp_path):
    published, refusal = REFUSED[name]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(published))
    with pytest.raises(ConfigError) as refused:
        read_network(path)
    assert str(refused.value).startswith(f"{path}: {refusal}")

"""The config.json of much used releases: read, built at the published size, and written as transformers reads it."""

import json

import pytest
import torch
from hugging_face_directories import AUTO_CLASSES
from published import PUBLISHED, REFUSED
from transformers import AutoConfig
from vocabularies import byte_level

from pretrain.compose import compose
from pretrain.errors import ConfigError
from pretrain.hub.family import family_for
from pretrain.hub.weights import read_network
from pretrain.models.attention.sdpa import sdpa

# Those of our own training, a function with several names (its network is read again below), the tokenizer's.
SAID_OTHERWISE = {"initializer_range", "hidden_act", "hidden_dropout_prob", "attention_probs_dropout_prob"}
SAID_OTHERWISE |= {"pad_token_id"}


def num_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_release_has_its_published_size_and_goes_out_as_it_came(name, tmp_path):
    published, parameters = PUBLISHED[name]
    (tmp_path / "config.json").write_text(json.dumps(published))
    _, network, parts = read_network(tmp_path / "config.json")
    family = family_for(network)
    assert family.model_type == published["model_type"]
    exported = family.to_hf(network, published["vocab_size"])
    assert family.from_hf(exported) == network
    before, after = (AutoConfig.for_model(**json.loads(json.dumps(file))) for file in (published, exported))
    for key in (exported.keys() & after.to_dict().keys()) - SAID_OTHERWISE:
        assert getattr(before, key, exported[key]) == getattr(after, key), key
    with torch.device("meta"):
        ours = network.build(vocab_size=published["vocab_size"], attend=sdpa)
        theirs = AUTO_CLASSES[network.kind].from_config(after)
    assert num_parameters(ours) == num_parameters(theirs) == parameters == sum(part.numel for part in parts)
    assert [type(theirs).__name__] == exported["architectures"] == published["architectures"]
    byte_level(["a text"]).save(str(tmp_path / "tokenizer.json"))
    assert compose([f"init_from={tmp_path}"]).model == network


@pytest.mark.parametrize("name", REFUSED)
def test_a_release_of_what_we_do_not_have_is_refused_by_name(name, tmp_path):
    published, refusal = REFUSED[name]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(published))
    with pytest.raises(ConfigError) as refused:
        read_network(path)
    assert str(refused.value) == f"{path}: {refusal}"

"""Each element of our decoders has one place in Hugging Face's layout, and configurations survive both ways."""

import re
from dataclasses import replace

import pytest
import torch
from small_models import LLAMA, VOCAB_SIZE, small_decoder
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig

from pretrain.errors import ConfigError
from pretrain.models.decoder import DecoderConfig
from pretrain.models.hub import family_for, family_of
from pretrain.models.layers import Activation

SHAPES = {
    "gpt2": {},
    "gpt2, untied": {"tie_embeddings": False, "mlp_width": 40, "activation": Activation.gelu, "norm_eps": 1e-3},
    "llama": {**LLAMA, "kv_heads": 2, "rope_theta": 5e5},
    "llama, untied": {**LLAMA, "tie_embeddings": False, "mlp_width": 56},
    "mistral": {**LLAMA, "window": 3, "kv_heads": 1},
}


@pytest.mark.parametrize("fields", SHAPES.values(), ids=SHAPES)
def test_each_element_lies_in_one_part_and_every_tensor_of_theirs_is_one(fields):
    model = small_decoder(**fields)
    family = family_for(model.config)
    covered = {name: torch.zeros(parameter.shape) for name, parameter in model.named_parameters()}
    parts = {part.theirs: part for part in family.parts(model.config, VOCAB_SIZE)}
    for part in parts.values():
        assert part.shape[1:] == covered[part.ours].shape[1:]
        covered[part.ours].view(-1)[part.start : part.start + part.numel] += 1
    assert all(bool((count == 1).all()) for count in covered.values())

    with torch.device("meta"):
        config = AutoConfig.for_model(**family.theirs(model.config, VOCAB_SIZE))
        theirs = AutoModelForCausalLM.from_config(config)
    assert type(theirs).__name__ == family.architecture
    shapes = {name: tuple(parameter.shape) for name, parameter in theirs.named_parameters()}
    assert shapes == {name: part.their_shape for name, part in parts.items()}


@pytest.mark.parametrize("fields", SHAPES.values(), ids=SHAPES)
def test_our_configuration_comes_back(fields):
    config = small_decoder(**fields).config
    theirs = family_for(config).theirs(config, VOCAB_SIZE)
    assert family_of(theirs) is family_for(config)
    assert outright(family_of(theirs).ours(theirs)) == outright(config)


def outright(config):
    """Say what may be left to a rule."""
    return replace(config, kv_heads=config.num_kv_heads, mlp_width=config.hidden_width)


def test_what_transformers_writes_is_understood():
    gpt2 = GPT2Config(n_embd=24, n_head=2, n_layer=3).to_dict()
    assert family_of(gpt2).ours(gpt2) == DecoderConfig(max_seq_len=1024, width=24, heads=2, layers=3, kv_heads=None)
    size = {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 4, "num_hidden_layers": 3}
    llama = LlamaConfig(**size, rope_parameters={"rope_type": "default", "rope_theta": 5e5}).to_dict()
    ours = {"width": 24, "mlp_width": 40, "heads": 4, "layers": 3, "tie_embeddings": False, "norm_eps": 1e-6, **LLAMA}
    assert family_of(llama).ours(llama) == DecoderConfig(max_seq_len=2048, kv_heads=4, rope_theta=5e5, **ours)
    mistral = MistralConfig(**size, num_key_value_heads=2, sliding_window=9).to_dict()
    assert family_of(mistral).ours(mistral) == DecoderConfig(max_seq_len=131072, kv_heads=2, window=9, **ours)


def test_configurations_of_older_versions_are_understood():
    theirs = LlamaConfig(hidden_size=24, num_attention_heads=4).to_dict()
    del theirs["rope_parameters"], theirs["head_dim"]
    assert family_of(theirs).ours({**theirs, "rope_theta": 5e5, "rope_scaling": None}).rope_theta == 5e5
    assert family_of(theirs).ours(theirs).rope_theta == 10_000


@pytest.mark.parametrize(
    ("theirs", "refusal"),
    [
        ({"model_type": "bloom"}, "model_type=bloom: not an architecture of ours; there are gpt2, llama, mistral"),
        (GPT2Config(scale_attn_by_inverse_layer_idx=True).to_dict(), "scale_attn_by_inverse_layer_idx=True has no"),
        (GPT2Config(activation_function="relu").to_dict(), "activation_function=relu has no counterpart in model=decoder (there are gelu_new, gelu"),
        (LlamaConfig(attention_bias=True).to_dict(), "attention_bias=True has no counterpart"),
        (LlamaConfig(hidden_act="gelu").to_dict(), "hidden_act=gelu has no counterpart"),
        (LlamaConfig(head_dim=64).to_dict(), "head_dim=64 has no counterpart"),
        (
            LlamaConfig(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}).to_dict(),
            "rope_type=linear has no counterpart",
        ),
        ({**LlamaConfig().to_dict(), "rope_scaling": {"type": "linear"}}, "rope_scaling={'type': 'linear'} has no"),
    ],
)
def test_what_we_do_not_have_is_refused_by_name(theirs, refusal):
    with pytest.raises(ConfigError, match=re.escape(refusal)):
        family_of(theirs).ours(theirs)

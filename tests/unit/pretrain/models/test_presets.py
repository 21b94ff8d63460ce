"""The presets in conf/model compose, build on the meta device, and have the sizes that they promise."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForMaskedLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from pretrain.compose import compose
from pretrain.hub.family import family_of
from pretrain.models.attention.sdpa import sdpa
from pretrain.models.init import Init

PRESETS = Path(__file__).parents[4] / "conf" / "model"
GPT2 = {
    "gpt2_124m": {"n_embd": 768, "n_layer": 12, "n_head": 12},
    "gpt2_350m": {"n_embd": 1024, "n_layer": 24, "n_head": 16},
    "gpt2_774m": {"n_embd": 1280, "n_layer": 36, "n_head": 20},
    "gpt2_1558m": {"n_embd": 1600, "n_layer": 48, "n_head": 25},
}
LLAMA = {
    "llama_1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "tie_word_embeddings": True},
    "llama_8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
}
DEMOS = ["demo", "demo_bert"]
LARGE = {"hidden_size": 1024, "num_attention_heads": 16}
ENCODERS = {
    "bert_base": {"model_type": "bert"},
    "bert_large": {"model_type": "bert", **LARGE, "num_hidden_layers": 24, "intermediate_size": 4096},
    "roberta_base": {
        "model_type": "roberta",
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
    },
    "modernbert_base": {"model_type": "modernbert"},
    "modernbert_large": {"model_type": "modernbert", **LARGE, "num_hidden_layers": 28, "intermediate_size": 2624},
}


def build(name, vocab_size, seq_len):
    objective = ["objective=masked_lm"] if name in [*ENCODERS, "demo_bert"] else []
    config = compose([f"model={name}", f"data.seq_len={seq_len}", *objective])
    with torch.device("meta"):
        return config.model.build(vocab_size=vocab_size, attend=sdpa)


def num_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", GPT2)
def test_gpt2_presets_have_the_released_sizes(name):
    with torch.device("meta"):
        released = GPT2LMHeadModel(GPT2Config(**GPT2[name]))
    ours = num_parameters(build(name, 50_257, 1024))
    assert ours == num_parameters(released)
    assert f" {ours:,} parameters" in (PRESETS / f"{name}.yaml").read_text()


@pytest.mark.parametrize("name", LLAMA)
def test_llama_presets_have_the_released_sizes(name):
    shape = {"vocab_size": 128_256, "num_attention_heads": 32, "num_key_value_heads": 8, **LLAMA[name]}
    with torch.device("meta"):
        released = LlamaForCausalLM(LlamaConfig(**shape))
    ours = num_parameters(build(name, 128_256, 8192))
    assert ours == num_parameters(released)
    assert f" {ours:,} parameters" in (PRESETS / f"{name}.yaml").read_text()


@pytest.mark.parametrize("name", ENCODERS)
def test_encoder_presets_are_the_released_networks(name):
    config = AutoConfig.for_model(**ENCODERS[name])
    with torch.device("meta"):
        released = AutoModelForMaskedLM.from_config(config)
    theirs = config.to_dict()
    published = family_of(theirs).from_hf(theirs)
    model = build(name, config.vocab_size, published.max_seq_len)
    assert num_parameters(model) == num_parameters(released)
    assert f" {num_parameters(model):,} parameters" in (PRESETS / f"{name}.yaml").read_text()
    dropout = 0.0 if "modern" in name else 0.1
    init = Init.modernbert if "modern" in name else Init.bert
    assert model.config == replace(published, mlp_width=model.config.mlp_width, dropout=dropout, init=init)
    assert model.config.hidden_width == published.hidden_width
    assert model.config.attention_dropout == 0


def test_the_demos_are_small():
    for name in DEMOS:
        assert num_parameters(build(name, 8192, 256)) < 20e6


def test_every_preset_is_tested():
    assert {path.stem for path in PRESETS.glob("*.yaml")} == {"default", *DEMOS, *GPT2, *LLAMA, *ENCODERS}

"""The presets in conf/model compose, build on the meta device, and have the sizes that they promise."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

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
RELEASED = {  # decoders, and what their config.json says of their networks
    "llama_3_2_1b": {
        **{"model_type": "llama", **LLAMA["llama_1b"], "num_key_value_heads": 8, "rms_norm_eps": 1e-5},
        **{"vocab_size": 128_256, "rope_theta": 5e5, "max_position_embeddings": 131072},
        "rope_scaling": {
            **{"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
            "original_max_position_embeddings": 8192,
        },
    },
    "qwen3_0_6b": {
        **{"model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28},
        **{"num_attention_heads": 16, "num_key_value_heads": 8, "rope_theta": 1e6, "tie_word_embeddings": True},
    },
    "smollm2_135m": {
        **{"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30},
        **{"num_attention_heads": 9, "num_key_value_heads": 3, "rope_theta": 1e5, "tie_word_embeddings": True},
        **{"rms_norm_eps": 1e-5, "vocab_size": 49152},
    },
    "gemma_3_1b": {
        **{"model_type": "gemma3_text", "vocab_size": 262_144, "max_position_embeddings": 32_768, "hidden_size": 1152},
        **{"num_attention_heads": 4, "num_key_value_heads": 1, "intermediate_size": 6912, "sliding_window": 512},
    },
}
DEMOS = ["demo", "demo_bert", "demo_seq2seq"]
LARGE = {"hidden_size": 1024, "num_attention_heads": 16}
ROBERTA = {"max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
ENCODERS = {
    "bert_base": {"model_type": "bert"},
    "bert_large": {"model_type": "bert", **LARGE, "num_hidden_layers": 24, "intermediate_size": 4096},
    "roberta_base": {"model_type": "roberta", **ROBERTA},
    "xlm_roberta_base": {"model_type": "xlm-roberta", "vocab_size": 250_002, **ROBERTA},
    "deberta_v3_base": {
        **{"model_type": "deberta-v2", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
        **{"intermediate_size": 3072, "relative_attention": True, "position_buckets": 256, "share_att_key": True},
        **{"norm_rel_ebd": "layer_norm", "pos_att_type": "p2c|c2p", "position_biased_input": False},
    },
    "modernbert_base": {"model_type": "modernbert"},
    "modernbert_large": {"model_type": "modernbert", **LARGE, "num_hidden_layers": 28, "intermediate_size": 2624},
}
BART_SIDES = {
    f"{side}_{key}": value
    for side in ("encoder", "decoder")
    for key, value in {"layers": 6, "attention_heads": 12, "ffn_dim": 3072}.items()
}
ENCODER_DECODERS = {
    "t5_small": {"model_type": "t5"},
    "t5_base": {"model_type": "t5", "d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12},
    "bart_base": {"model_type": "bart", "d_model": 768, **BART_SIDES},
}
PAIRS_ONLY = ["transformer_base"]


def build(name, vocab_size, seq_len):
    objective = "causal_lm"
    if name in [*ENCODERS, "demo_bert"]:
        objective = "masked_lm"
    elif name in [*ENCODER_DECODERS, *PAIRS_ONLY, "demo_seq2seq"]:
        objective = "denoising"
    config = compose([f"model={name}", f"data.seq_len={seq_len}", f"objective={objective}"])
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


@pytest.mark.parametrize("name", RELEASED)
def test_decoder_presets_are_the_released_networks(name):
    config = AutoConfig.for_model(**RELEASED[name])
    with torch.device("meta"):
        released = AutoModelForCausalLM.from_config(config)
    theirs = config.to_dict()
    published = family_of(theirs).from_hf(theirs).plain()
    model = build(name, config.vocab_size, published.max_seq_len)
    assert num_parameters(model) == num_parameters(released)
    assert f" {num_parameters(model):,} parameters" in (PRESETS / f"{name}.yaml").read_text()
    assert replace(model.config.plain(), init=published.init, init_std=published.init_std) == published


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


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_encoder_decoder_presets_are_the_released_networks(name):
    config = AutoConfig.for_model(**ENCODER_DECODERS[name])
    with torch.device("meta"):
        released = AutoModelForSeq2SeqLM.from_config(config)
    theirs = config.to_dict()
    published = family_of(theirs).from_hf(theirs)
    model = build(name, config.vocab_size, published.max_seq_len)
    assert num_parameters(model) == num_parameters(released)
    assert f" {num_parameters(model):,} parameters" in (PRESETS / f"{name}.yaml").read_text()
    # A bias on the logits that is all zeros in every BART, and no parameter there.
    ours = {"dropout": 0.1, "init": model.config.init, "mlp_dropout": model.config.mlp_dropout, "head_bias": False}
    for key in ("mlp_width", "decoder_layers", "attention_width"):  # null: the value that the released one has
        ours[key] = getattr(model.config, key)
    for key in ("hidden_width", "num_decoder_layers", "all_heads_width"):
        assert getattr(model.config, key) == getattr(published, key), key
    assert model.config == replace(published, **ours)
    assert model.config.attention_dropout == 0


def test_the_original_transformer_has_the_size_of_the_paper():
    """Vaswani et al. 2017, table 3: 65 million, at a vocabulary of about 37,000 tokens."""
    count = num_parameters(build("transformer_base", 37_000, 512))
    assert abs(count / 65e6 - 1) < 0.03
    assert f" {count:,} parameters" in (PRESETS / "transformer_base.yaml").read_text()


def test_the_demos_are_small():
    for name in DEMOS:
        assert num_parameters(build(name, 8192, 256)) < 20e6


def test_every_preset_is_tested():
    tested = {*DEMOS, *GPT2, *LLAMA, *RELEASED, *ENCODERS, *ENCODER_DECODERS, *PAIRS_ONLY}
    assert {path.stem for path in PRESETS.glob("*.yaml")} == {"default", *tested}

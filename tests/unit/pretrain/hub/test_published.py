"""The config.json of checkpoints that many use: our networks of them have the published number of parameters."""

import json

import pytest
import torch
from hugging_face_directories import AUTO_CLASSES
from transformers import AutoConfig
from vocabularies import byte_level

from pretrain.compose import compose
from pretrain.errors import ConfigError
from pretrain.hub.family import family_of
from pretrain.hub.weights import read_network
from pretrain.models.attention.sdpa import sdpa

NEOX = {
    **{"architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "bos_token_id": 0, "eos_token_id": 0},
    **{"hidden_act": "gelu", "initializer_range": 0.02, "layer_norm_eps": 1e-05, "max_position_embeddings": 2048},
    **{"rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": False, "torch_dtype": "float16"},
    **{"transformers_version": "4.24.0", "use_cache": True, "use_parallel_residual": True, "vocab_size": 50304},
}
PHI3 = {
    **{"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "attention_bias": False, "attention_dropout": 0.0},
    **{"auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}, "bos_token_id": 1, "eos_token_id": 32000},
    **{"embd_pdrop": 0.0, "hidden_act": "silu", "hidden_size": 3072, "initializer_range": 0.02},
    **{"intermediate_size": 8192, "max_position_embeddings": 4096, "num_attention_heads": 32, "num_hidden_layers": 32},
    **{"num_key_value_heads": 32, "original_max_position_embeddings": 4096, "pad_token_id": 32000, "resid_pdrop": 0.0},
    **{"rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 10000.0, "sliding_window": 2047},
    **{"tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.40.2", "use_cache": True},
    "vocab_size": 32064,
}
# Names, what their files say, and the number of parameters that transformers counts.
PUBLISHED = {
    "EleutherAI/pythia-70m": (
        {**NEOX, "hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "num_hidden_layers": 6},
        70_426_624,
    ),
    "EleutherAI/pythia-1b": (
        {**NEOX, "hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 8, "num_hidden_layers": 16},
        1_011_781_632,
    ),
    "EleutherAI/pythia-6.9b": (
        {
            **{**NEOX, "hidden_size": 4096, "intermediate_size": 16384, "num_attention_heads": 32},
            **{"num_hidden_layers": 32, "vocab_size": 50432},
        },
        6_857_302_016,
    ),
    "EleutherAI/gpt-neox-20b": (
        {
            **{key: value for key, value in NEOX.items() if key != "use_parallel_residual"},
            **{"attention_probs_dropout_prob": 0, "hidden_dropout_prob": 0, "hidden_act": "gelu_fast"},
            **{"hidden_size": 6144, "intermediate_size": 24576, "num_attention_heads": 64, "num_hidden_layers": 44},
            **{"vocab_size": 50432, "transformers_version": "4.19.0.dev0"},
        },
        20_554_567_680,
    ),
    "microsoft/Phi-3-mini-4k-instruct": (PHI3, 3_821_079_552),
}
LONGROPE = {"long_factor": [1.0] * 48, "short_factor": [1.0] * 48}
# What their files say, and why not.
REFUSED = {
    "microsoft/Phi-3-mini-128k-instruct": (
        {**PHI3, "max_position_embeddings": 131_072, "rope_scaling": {**LONGROPE, "type": "longrope"}},
        "rope_scaling.type=longrope is not supported by model=decoder (default is)",
    ),
    "microsoft/Phi-4-mini-instruct": (
        {
            **{**PHI3, "max_position_embeddings": 131_072, "rope_scaling": {**LONGROPE, "type": "longrope"}},
            **{"full_attn_mod": 1, "interpolate_factor": 1, "lm_head_bias": False, "mlp_bias": False},
            **{"num_attention_heads": 24, "num_key_value_heads": 8, "partial_rotary_factor": 0.75},
            **{"sliding_window": 262_144, "tie_word_embeddings": True, "vocab_size": 200_064},
        },
        "rope_scaling.type=longrope is not supported by model=decoder (default is)",
    ),
}


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_build_and_go_out(name, tmp_path):
    theirs, parameters = PUBLISHED[name]
    (tmp_path / "config.json").write_text(json.dumps(theirs))
    family, network, _ = read_network(tmp_path / "config.json")
    byte_level(["a text"]).save(str(tmp_path / "tokenizer.json"))
    assert compose([f"init_from={tmp_path}"]).model == network
    with torch.device("meta"):
        assert count(network.build(vocab_size=theirs["vocab_size"], attend=sdpa)) == parameters
    written = family.to_hf(network, theirs["vocab_size"])
    assert family_of(written).from_hf(written) == network
    with torch.device("meta"):
        kind = AUTO_CLASSES[network.kind]
        for said in (theirs, written):
            assert count(kind.from_config(AutoConfig.for_model(**said))) == parameters


@pytest.mark.parametrize("name", REFUSED)
def test_published_configurations_of_what_we_do_not_have_are_refused_by_name(name, tmp_path):
    theirs, refusal = REFUSED[name]
    (tmp_path / "config.json").write_text(json.dumps(theirs))
    with pytest.raises(ConfigError) as refused:
        read_network(tmp_path / "config.json")
    assert str(refused.value) == f"{tmp_path / 'config.json'}: {refusal}"

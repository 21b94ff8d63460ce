"""The config.json of much used releases: read, built at the published size, and written as transformers reads it."""

import json

import pytest
import torch
from hugging_face_directories import AUTO_CLASSES
from transformers import AutoConfig
from vocabularies import byte_level

from pretrain.compose import compose
from pretrain.hub.family import family_for
from pretrain.hub.weights import read_network
from pretrain.models.attention.sdpa import sdpa

GEMMA3 = {
    **{"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "attention_bias": False},
    **{"attention_dropout": 0.0, "attn_logit_softcapping": None, "bos_token_id": 2, "eos_token_id": 1},
    **{"final_logit_softcapping": None, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh"},
    **{"initializer_range": 0.02, "max_position_embeddings": 32768, "num_attention_heads": 4, "pad_token_id": 0},
    **{"num_key_value_heads": 1, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6, "rope_scaling": None},
    **{"sliding_window": 512, "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 262144},
}
OLMO2 = {
    **{"architectures": ["Olmo2ForCausalLM"], "model_type": "olmo2", "attention_bias": False, "attention_dropout": 0.0},
    **{"eos_token_id": 100257, "hidden_act": "silu", "initializer_range": 0.02, "max_position_embeddings": 4096},
    **{"pad_token_id": 100277, "rms_norm_eps": 1e-6, "rope_scaling": None, "rope_theta": 500000},
    **{"tie_word_embeddings": False, "torch_dtype": "float32", "use_cache": True, "vocab_size": 100352},
}
PUBLISHED = {  # the files, and the parameters of the networks that they describe
    "google/gemma-3-270m": (
        GEMMA3
        | {"_sliding_window_pattern": 6, "hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18}
        | {"layer_types": 3 * [*5 * ["sliding_attention"], "full_attention"], "use_bidirectional_attention": False}
        | {"rope_local_base_freq": 10000.0, "rope_theta": 1000000.0},
        268_098_176,
    ),
    "google/gemma-3-1b-pt": (
        GEMMA3
        | {"cache_implementation": "hybrid", "hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 26}
        | {"eos_token_id": [1, 106], "rope_local_base_freq": 10000, "rope_theta": 1000000, "sliding_window_pattern": 6},
        999_885_952,
    ),
    # What text_config of google/gemma-3-27b-pt says, and its network of text: heads of 128, scores of 168.
    "gemma-3-27b, text alone": (
        GEMMA3
        | {"head_dim": 128, "hidden_size": 5376, "intermediate_size": 21504, "max_position_embeddings": 131072}
        | {"num_attention_heads": 32, "num_hidden_layers": 62, "num_key_value_heads": 16, "query_pre_attn_scalar": 168}
        | {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024, "vocab_size": 262208},
        27_009_346_304,
    ),
    "allenai/OLMo-2-0425-1B": (
        OLMO2
        | {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 16, "num_hidden_layers": 16}
        | {"num_key_value_heads": 16},
        1_484_916_736,
    ),
    "allenai/OLMo-2-1124-7B": (
        OLMO2
        | {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_hidden_layers": 32}
        | {"num_key_value_heads": 32},
        7_298_617_344,
    ),
}


def num_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_release_has_its_published_size_and_goes_out_as_it_came(name, tmp_path):
    published, parameters = PUBLISHED[name]
    (tmp_path / "config.json").write_text(json.dumps(published))
    family, network, parts = read_network(tmp_path / "config.json")
    assert family_for(network) is family
    exported = family.to_hf(network, published["vocab_size"])
    before, after = (AutoConfig.for_model(**json.loads(json.dumps(file))) for file in (published, exported))
    for key in before.to_dict().keys() & exported.keys():
        assert getattr(before, key) == getattr(after, key), key
    with torch.device("meta"):
        ours = network.build(vocab_size=published["vocab_size"], attend=sdpa)
        theirs = AUTO_CLASSES[network.kind].from_config(after)
    assert num_parameters(ours) == num_parameters(theirs) == parameters == sum(part.numel for part in parts)
    assert [type(theirs).__name__] == published["architectures"] == exported["architectures"]
    byte_level(["a text"]).save(str(tmp_path / "tokenizer.json"))
    assert compose([f"init_from={tmp_path}"]).model == network

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
from pretrain.models.rotary import RopeScaling, Scaling

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
LLAMA3 |= {"rope_type": "llama3"}
OF_ALL = {"torch_dtype": "bfloat16", "use_cache": True, "initializer_range": 0.02, "hidden_act": "silu"}
LLAMA = OF_ALL | {
    **{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": False, "rms_norm_eps": 1e-5},
    **{"pretraining_tp": 1, "rope_scaling": None, "tie_word_embeddings": False, "num_attention_heads": 32},
}
LLAMA_3 = LLAMA | {
    **{"attention_dropout": 0.0, "bos_token_id": 128000, "eos_token_id": 128001, "max_position_embeddings": 131072},
    **{"mlp_bias": False, "num_key_value_heads": 8, "rope_theta": 500000.0, "vocab_size": 128256},
}
QWEN = OF_ALL | {
    **{"attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151643, "rms_norm_eps": 1e-6},
    **{"rope_theta": 1000000.0, "tie_word_embeddings": True, "use_sliding_window": False, "vocab_size": 151936},
}
QWEN2 = QWEN | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "use_mrope": False}
QWEN3 = QWEN | {
    **{"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "attention_bias": False, "eos_token_id": 151645},
    **{"head_dim": 128, "max_position_embeddings": 40960, "num_key_value_heads": 8, "rope_scaling": None},
    **{"rope_theta": 1000000, "sliding_window": None},
}
PUBLISHED = {  # the files, and the parameters of the networks that they describe
    "meta-llama/Llama-3.1-8B": (
        LLAMA_3
        | {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
        | {"rope_scaling": LLAMA3 | {"factor": 8.0}},
        8_030_261_248,
    ),
    "meta-llama/Llama-3.2-1B": (
        LLAMA_3
        | {"head_dim": 64, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16}
        | {"rope_scaling": LLAMA3 | {"factor": 32.0}, "tie_word_embeddings": True},
        1_235_814_400,
    ),
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": (
        LLAMA
        | {"bos_token_id": 1, "eos_token_id": 2, "hidden_size": 2048, "intermediate_size": 5632, "rope_theta": 10000.0}
        | {"max_position_embeddings": 2048, "num_hidden_layers": 22, "num_key_value_heads": 4, "vocab_size": 32000},
        1_100_048_384,
    ),
    "HuggingFaceTB/SmolLM2-135M": (
        LLAMA
        | {"attention_dropout": 0.0, "bos_token_id": 0, "eos_token_id": 0, "hidden_size": 576, "mlp_bias": False}
        | {"initializer_range": 0.041666666666666664, "intermediate_size": 1536, "is_llama_config": True}
        | {"max_position_embeddings": 8192, "num_attention_heads": 9, "num_hidden_layers": 30}
        | {"num_key_value_heads": 3, "rope_interleaved": False, "rope_theta": 100000, "tie_word_embeddings": True}
        | {"vocab_size": 49152},
        134_515_008,
    ),
    "mistralai/Mistral-Nemo-Base-2407": (
        OF_ALL
        | {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "bos_token_id": 1, "eos_token_id": 2}
        | {"attention_dropout": 0.0, "head_dim": 128, "hidden_size": 5120, "intermediate_size": 14336}
        | {"max_position_embeddings": 128000, "num_attention_heads": 32, "num_hidden_layers": 40, "rms_norm_eps": 1e-5}
        | {"num_key_value_heads": 8, "rope_theta": 1000000.0, "sliding_window": None, "tie_word_embeddings": False}
        | {"vocab_size": 131072},
        12_247_782_400,
    ),
    "Qwen/Qwen2.5-0.5B": (
        QWEN2
        | {"hidden_size": 896, "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 24}
        | {"num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2, "sliding_window": 32768},
        494_032_768,
    ),
    "Qwen/Qwen2.5-7B": (
        QWEN2
        | {"hidden_size": 3584, "intermediate_size": 18944, "max_position_embeddings": 131072, "max_window_layers": 28}
        | {"num_attention_heads": 28, "num_hidden_layers": 28, "num_key_value_heads": 4, "sliding_window": 131072}
        | {"tie_word_embeddings": False, "vocab_size": 152064},
        7_615_616_512,
    ),
    "Qwen/Qwen3-0.6B": (
        QWEN3
        | {"hidden_size": 1024, "intermediate_size": 3072, "max_window_layers": 28, "num_attention_heads": 16}
        | {"num_hidden_layers": 28},
        596_049_920,
    ),
    "Qwen/Qwen3-8B": (
        QWEN3
        | {"hidden_size": 4096, "intermediate_size": 12288, "max_window_layers": 36, "num_attention_heads": 32}
        | {"num_hidden_layers": 36, "tie_word_embeddings": False},
        8_190_735_360,
    ),
}


def num_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_release_has_its_published_size_and_goes_out_as_it_came(name, tmp_path):
    published, parameters = PUBLISHED[name]
    (tmp_path / "config.json").write_text(json.dumps(published))
    _, config, parts = read_network(tmp_path / "config.json")
    exported = family_for(config).to_hf(config, published["vocab_size"])
    assert exported["model_type"] == ("llama" if "Nemo" in name else published["model_type"])  # no window: Llama
    before, after = (AutoConfig.for_model(**json.loads(json.dumps(file))) for file in (published, exported))
    for key in (exported.keys() & after.to_dict().keys()) - {"model_type", "architectures", "initializer_range"}:
        assert getattr(before, key, exported[key]) == getattr(after, key), key
    with torch.device("meta"):
        ours = config.build(vocab_size=published["vocab_size"], attend=sdpa)
        theirs = AUTO_CLASSES[config.kind].from_config(after)
    assert num_parameters(ours) == num_parameters(theirs) == parameters == sum(part.numel for part in parts)
    assert [type(theirs).__name__] == exported["architectures"]


def test_a_run_takes_over_the_network_of_a_release(tmp_path):
    published, _ = PUBLISHED["meta-llama/Llama-3.2-1B"]
    (tmp_path / "config.json").write_text(json.dumps(published))
    byte_level(["a text"]).save(str(tmp_path / "tokenizer.json"))
    cfg = compose([f"init_from={tmp_path}"])
    scaling = RopeScaling(kind=Scaling.llama3, factor=32.0, original_length=8192)
    assert (cfg.model.rope_scaling, cfg.model.max_seq_len, cfg.model.heads) == (scaling, 131072, 32)

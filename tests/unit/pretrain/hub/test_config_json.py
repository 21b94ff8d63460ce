"""A config.json says what transformers reads in it: left-out keys, older spellings; absurd values end in words."""

import json
import re
from dataclasses import replace

import pytest
import torch
from hugging_face_directories import AUTO_CLASSES
from transformers import AutoConfig, GenerationConfig
from transformers.activations import ACT2FN

from pretrain.errors import CheckpointError, ConfigError
from pretrain.hub.config_json import _SAME_FUNCTION
from pretrain.hub.family import FAMILIES, family_of
from pretrain.hub.weights import read_network
from pretrain.models.base import ModelKind

SHAPED = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 6}
# Files of which every key says something else than the default.
WRITTEN = {
    "gpt2": {"n_positions": 64, "n_inner": 40, "layer_norm_epsilon": 1e-3, "activation_function": "gelu", **SHAPED},
    "llama": {
        **{"max_position_embeddings": 64, "num_key_value_heads": 2, "rms_norm_eps": 1e-3, "rope_theta": 5e5},
        **{"head_dim": 10, "rope_parameters": {"type": "linear", "factor": 2.0}},
    },
    "mistral": {"max_position_embeddings": 64, "num_key_value_heads": 2, "rms_norm_eps": 1e-3, "sliding_window": 9},
    "gpt_neox": {
        **{"max_position_embeddings": 64, "layer_norm_eps": 1e-3, "hidden_act": "gelu_new", "rotary_pct": 0.5},
        **{"rotary_emb_base": 5e5, "use_parallel_residual": False},
    },
    "phi3": {
        **{"max_position_embeddings": 64, "num_key_value_heads": 2, "rms_norm_eps": 1e-3, "rope_theta": 5e5},
        **{"partial_rotary_factor": 0.5, "sliding_window": 9},
    },
    "qwen2": {
        **{"max_position_embeddings": 64, "num_key_value_heads": 2, "rms_norm_eps": 1e-3, "rope_theta": 5e5},
        **{"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 0, "head_dim": 10},
        "rope_parameters": {"rope_type": "yarn", "factor": 2.0, "beta_fast": 16.0},
    },
    "bert": {"max_position_embeddings": 64, "type_vocab_size": 3, "layer_norm_eps": 1e-3, "hidden_act": "gelu_new"},
    "roberta": {"max_position_embeddings": 64, "type_vocab_size": 3, "layer_norm_eps": 1e-3, "pad_token_id": 4},
    "xlm-roberta": {"max_position_embeddings": 64, "type_vocab_size": 3, "layer_norm_eps": 1e-3, "pad_token_id": 4},
    "electra": {"max_position_embeddings": 64, "type_vocab_size": 3, "layer_norm_eps": 1e-3, "embedding_size": 10},
    "distilbert": {"max_position_embeddings": 64, "hidden_dim": 40, "activation": "gelu_new", **SHAPED},
    "deberta-v2": {
        **{"max_position_embeddings": 64, "layer_norm_eps": 1e-3, "hidden_act": "gelu_new", "type_vocab_size": 2},
        **{"relative_attention": True, "position_biased_input": False, "pos_att_type": ["c2p"], "share_att_key": True},
        **{"norm_rel_ebd": "layer_norm", "position_buckets": 8, "max_relative_positions": 20},
    },
    "modernbert": {
        **{"max_position_embeddings": 64, "norm_eps": 1e-3, "hidden_activation": "silu", "local_attention": 10},
        **{"norm_bias": True, "attention_bias": True, "mlp_bias": True, "classifier_bias": True},
        **{"global_attn_every_n_layers": 2, "global_rope_theta": 5e4, "local_rope_theta": 3e4},
    },
    "olmo2": {"max_position_embeddings": 64, "num_key_value_heads": 2, "rms_norm_eps": 1e-3, "rope_theta": 5e5},
    "gemma3_text": {
        **{"max_position_embeddings": 64, "num_key_value_heads": 2, "rms_norm_eps": 1e-3, "hidden_activation": "gelu"},
        **{"head_dim": 10, "query_pre_attn_scalar": 12, "sliding_window": 9, "sliding_window_pattern": 3},
        **{"rope_theta": 5e5, "rope_local_base_freq": 3e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    },
    "t5": {
        **{"n_positions": 64, "d_ff": 40, "layer_norm_epsilon": 1e-3, "feed_forward_proj": "gated-gelu", "d_kv": 5},
        **{"num_decoder_layers": 3, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20},
        **{"d_model": 48, "num_layers": 4, "num_heads": 6},
    },
}
for name in ("bart", "mbart", "marian"):
    WRITTEN[name] = {
        **{"max_position_embeddings": 64, "activation_function": "silu", "scale_embedding": True, "decoder_layers": 3},
        **{"d_model": 48, "encoder_layers": 4, "encoder_ffn_dim": 40, "decoder_ffn_dim": 40},
    }
WRITTEN["qwen3"] = WRITTEN["qwen2"] | {"layer_types": ["sliding_attention"] * 4}
for name in FAMILIES.keys() - {"gpt2", "distilbert", "bart", "mbart", "marian", "t5"}:
    WRITTEN[name] |= SHAPED | {"intermediate_size": 40}
BIASES = ("final_logits_bias",)
# Of which transformers builds another network than its checkpoints are, where a file says nothing.
SAID = {"deberta-v2": {"relative_attention": True, "position_biased_input": False, "pos_att_type": ["p2c"]}}
for name, keys in WRITTEN.items():
    keys |= {
        "model_type": name,
        "vocab_size": 61,
        "tie_word_embeddings": name not in ("gpt2", "gemma3_text", "distilbert", "modernbert", "t5"),
    }


def read(theirs):
    """Return our configuration with nothing left to a rule and the rows of the embedding, None for a refused file."""
    try:
        config = family_of(theirs).from_hf(theirs)
    except ConfigError:
        return None
    sizes = {"mlp_width": config.hidden_width}
    if config.kind is ModelKind.causal:
        sizes |= {"kv_heads": config.num_kv_heads}
    if config.kind is ModelKind.encoder_decoder:
        sizes |= {"decoder_layers": config.num_decoder_layers}
    return replace(config, **sizes), family_of(theirs).vocab_size(theirs)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_a_file_leaves_out_is_what_transformers_takes(name):
    files = [WRITTEN[name], {"model_type": name}, {"model_type": name, "vocab_size": 61, "architectures": ["X"]}]
    files += [{own: value for own, value in WRITTEN[name].items() if own != key} for key in WRITTEN[name]]
    whole = AutoConfig.for_model(**WRITTEN[name]).to_dict()
    files += [{own: value for own, value in whole.items() if own != key} for key in whole]
    understood = 0
    for file in files:
        if "model_type" in file and (ours := read(file)):
            theirs = AutoConfig.for_model(**json.loads(json.dumps(file)))
            assert ours == read(theirs.to_dict()), set(WRITTEN[name]) ^ set(file)
            understood += 1
    assert understood > 0.8 * len(files)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_file_that_names_its_family_alone_describes_the_network_that_transformers_builds(name, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": name} | SAID.get(name, {})))
    family, config, parts = read_network(tmp_path / "config.json")
    with torch.device("meta"):
        theirs = AUTO_CLASSES[config.kind].from_config(AutoConfig.for_model(name, **SAID.get(name, {})))
    trained = {name: tuple(each.shape) for name, each in theirs.named_parameters() if each.requires_grad}
    if config.tie_embeddings:  # the copy comes first in XLM-RoBERTa
        trained = {family.tensors.tied.get(name, name): shape for name, shape in trained.items()}
    trained |= {name: tuple(each.shape) for name, each in theirs.named_buffers() if name in BIASES and config.head_bias}
    if name == "gpt_neox":
        trained["embed_out.weight"] = trained.pop("lm_head.weight")
    assert {part.theirs: part.their_shape for part in parts} == trained


OTHER_NAMES = {
    ("gpt2", "n_embd"): "hidden_size",
    ("gpt2", "n_positions"): "max_position_embeddings",
    ("distilbert", "dim"): "hidden_size",
    ("distilbert", "n_layers"): "num_hidden_layers",
}


def test_keys_have_the_other_names_that_transformers_reads():
    for name, family in FAMILIES.items():
        assert type(AutoConfig.for_model(name)).attribute_map == family.settings.other_names


@pytest.mark.parametrize(("name", "key"), OTHER_NAMES)
def test_two_names_of_a_key_that_contradict_each_other_are_refused(name, key):
    other = OTHER_NAMES[name, key]
    theirs = {"model_type": name, key: 48, other: 48}
    assert read(theirs) == read({"model_type": name, key: 48})
    with pytest.raises(ConfigError, match=f"^{other}=24: {key} is another one"):
        family_of(theirs).from_hf(theirs | {other: 24})


# Spellings of versions between 2 and 5 of transformers, each with what it means today.
DEFAULT_ROPE = {"rope_type": "default", "rope_theta": 5e5}
HALF = {"rope_type": "default", "partial_rotary_factor": 0.5}
LINEAR = {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.25, "rope_theta": 10_000}
LLAMA3 = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 8192}
FOURFOLD = {"rope_type": "linear", "factor": 4.0}
SPELLINGS = [
    ("llama", {"rope_scaling": {"rope_type": "default"}}, {}),
    ("llama", {"rope_scaling": None, "rope_theta": 5e5}, {"rope_parameters": DEFAULT_ROPE}),
    ("llama", {"rope_scaling": {"type": "default"}, "rope_theta": 5e5}, {"rope_parameters": DEFAULT_ROPE}),
    ("llama", {"rope_scaling": DEFAULT_ROPE, "rope_parameters": {"rope_theta": 7.0}, "rope_theta": 9}, DEFAULT_ROPE),
    ("llama", {"rope_parameters": {"rope_type": "default"}, "rope_theta": 5e5}, {"rope_parameters": DEFAULT_ROPE}),
    ("llama", {"hidden_act": "swish"}, {"hidden_act": "silu"}),
    ("llama", {"rope_scaling": LLAMA3, "rope_theta": 5e5}, {"rope_parameters": LLAMA3 | {"rope_theta": 5e5}}),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 2}}, {"rope_parameters": {**FOURFOLD, "factor": 2.0}}),
    ("llama", {"rope_theta": None, "rope_parameters": DEFAULT_ROPE}, {"rope_theta": 5e5}),
    ("llama", {"rope_scaling": {}, "rope_parameters": DEFAULT_ROPE}, {"rope_theta": 5e5}),
    (
        "llama",
        {"rope_scaling": FOURFOLD | {"type": "yarn", "original_max_position_embeddings": 9}},
        {"rope_parameters": FOURFOLD},
    ),
    ("mistral", {"head_dim": 128, "num_attention_heads": 24}, {"head_dim": 128, "num_attention_heads": 24}),
    (
        "qwen2",
        {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, "rope_theta": 1e6},
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6, "beta_fast": 32, "beta_slow": 1}},
    ),
    ("qwen2", {"use_mrope": False, "sliding_window": 9, "use_sliding_window": False, "max_window_layers": 21}, {}),
    (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 0},
        {"use_sliding_window": True, "sliding_window": 9, "layer_types": ["sliding_attention"] * 32},
    ),
    ("qwen3", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 32}, {"sliding_window": None}),
    ("llama", {"head_dim": None, "num_key_value_heads": None, "rope_parameters": None}, {}),
    ("mistral", {"sliding_window": None, "rope_theta": 5e5}, {"sliding_window": None, "rope_parameters": DEFAULT_ROPE}),
    ("gpt_neox", {"rotary_pct": 0.5, "hidden_act": "gelu_fast"}, {"rope_parameters": HALF, "hidden_act": "gelu_new"}),
    (
        "gpt_neox",
        {"rope_scaling": {"type": "linear", "factor": 2.0}, "hidden_dropout_prob": 0},
        {"rope_scaling": LINEAR},
    ),
    ("phi3", {"partial_rotary_factor": 0.5, "rope_scaling": None, "head_dim": None}, {"rope_parameters": HALF}),
    ("olmo2", {"rope_scaling": None, "rope_theta": 5e5}, {"rope_parameters": DEFAULT_ROPE}),
    ("gemma3_text", {"rope_theta": 5e5}, {"rope_parameters": {"full_attention": DEFAULT_ROPE}}),
    ("gemma3_text", {"rope_local_base_freq": 5e5}, {"rope_parameters": {"sliding_attention": DEFAULT_ROPE}}),
    ("gemma3_text", {"sliding_window_pattern": 1}, {"layer_types": ["full_attention"] * 26, "sliding_window": 9}),
    ("modernbert", {"rope_scaling": {"rope_type": "default"}, "layer_types": None}, {}),
    ("modernbert", {"rope_parameters": {"full_attention": DEFAULT_ROPE}}, {"global_rope_theta": 5e5}),
    ("bert", {"hidden_act": "gelu_python", "torch_dtype": "float16", "position_embedding_type": "absolute"}, {}),
    ("bert", {"hidden_act": "gelu_fast", "dtype": "float16"}, {"hidden_act": "gelu_new"}),
    ("gpt2", {"activation_function": "gelu_pytorch_tanh", "n_ctx": 1024, "n_inner": None}, {}),
    ("gpt2", {"hidden_size": 48, "output_past": True, "n_inner": None, "prefix": "x"}, {"n_embd": 48}),
    ("distilbert", {"activation": "gelu_accurate", "tie_weights_": True}, {"activation": "gelu_new"}),
]


@pytest.mark.parametrize(("name", "old", "today"), SPELLINGS)
def test_older_spellings_mean_what_they_meant(name, old, today):
    theirs = {"model_type": name, **old}
    today = {"rope_parameters": today} if today is DEFAULT_ROPE else today
    assert read(theirs) == read({"model_type": name, **today}) is not None
    assert read(theirs) == read(AutoConfig.for_model(**json.loads(json.dumps(theirs))).to_dict())


def test_activations_of_other_names_are_the_same_functions():
    x = torch.linspace(-9, 9, 1001, dtype=torch.float64)
    for other, name in _SAME_FUNCTION.items():
        torch.testing.assert_close(ACT2FN[other](x), ACT2FN[name](x), atol=1e-11, rtol=0)


def test_how_texts_are_generated_says_nothing_of_the_network():
    for key in {**GenerationConfig._get_default_generation_params(), "tokenizer_class": None, "xla_device": None}:
        assert read({"model_type": "gpt2", key: 3}) == read({"model_type": "gpt2"}), key


ABSURD = [
    *(10**9, 10**12, 10**400, -1, 0, 1.5, 48.0, 1e39, float("nan"), float("inf"), -0.0, True, False),
    *(
        "48",
        "",
        None,
        [],
        [48],
        {},
        {"a": 1},
        json.loads("[" * 200 + "]" * 200),
        ["full_attention"],
        {"rope_theta": {}},
    ),
]


@pytest.mark.parametrize("name", FAMILIES)
def test_absurd_values_are_refused_in_words_before_anything_is_built(name, tmp_path):
    """What passes are the numbers that may be large or small; 10^9 layers would take all memory if they were built."""
    settings = FAMILIES[name].settings
    path = tmp_path / "config.json"
    passed = {}
    for key in {"model_type", "vocab_size", *settings.defaults, *settings.computes, *settings.other_names, "x"}:
        for value in ABSURD:
            path.write_text(json.dumps(WRITTEN[name] | {key: value}))
            try:
                _, config, _ = read_network(path)
            except ConfigError as error:
                assert str(error).startswith(f"{path}: ") and len(str(error)) < len(str(path)) + 300
            else:
                passed.setdefault(key, []).append(value)
                assert config.layers <= 48 and config.width <= 48
    numbers = {key for key, value in settings.defaults.items() if type(value) is float}
    unset = (None, False, True, "", [], {}, *([-1] if name == "deberta-v2" else []))
    assert not {key for key in passed.keys() - numbers if any(value not in unset for value in passed[key])}


def test_sizes_that_are_too_large_name_key_value_and_bound(tmp_path):
    path = tmp_path / "config.json"
    for key, value, rule in (
        ("num_hidden_layers", 10**9, "num_hidden_layers=1000000000: must be a whole number from 1 to 1000"),
        ("vocab_size", 10**12, "vocab_size=1000000000000: must be a whole number from 1 to 16777216"),
        ("layer_norm_eps", float("nan"), "layer_norm_eps=nan: must be a positive number below 1e+38"),
        ("tie_word_embeddings", "false", "tie_word_embeddings=false is not supported"),
        ("hidden_size", True, "hidden_size=true: must be a whole number"),
    ):
        path.write_text(json.dumps({"model_type": "bert", key: value}))
        with pytest.raises(ConfigError, match=re.escape(f"{path}: {rule}")):
            read_network(path)


def test_json_that_is_no_configuration_is_refused(tmp_path):
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(CheckpointError, match=r"no more than 268,435,456 are read\); fetch or write it again"):
        read_network(path)
    for content, problem in (
        (b"", "is empty; fetch or write it again"),
        (b"[" * 100_000, "cannot be read"),
        (b'{"hidden_size": ' + b"9" * 5000 + b"}", "cannot be read"),
        (b'["bert"]', "cannot be read (not a JSON object)"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "a pointer of Git LFS, not the file itself; run `git lfs pull`",
        ),
    ):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=f"^{re.escape(str(path))}: {re.escape(problem)}"):
            read_network(path)

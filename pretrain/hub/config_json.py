"""What a family's config.json says: its keys, their types, what they are where they are left out, and their bounds.

Holds the tables and the checks of single values; `family` makes our configuration of them.
"""

from __future__ import annotations

import reprlib
from dataclasses import dataclass, field
from typing import Any, get_args, get_type_hints

from pretrain.errors import ConfigError, as_written, check
from pretrain.models.layers import Activation

SIZES = {  # keys of config.json in most families, and ours of the same value
    "max_position_embeddings": "max_seq_len",
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "intermediate_size": "mlp_width",
}
# Keys, or their beginnings, that any config.json may have and that say nothing of what its network computes.
_SILENT = (
    *("_", "architectures", "model_type", "vocab_size", "dtype", "torch_dtype", "auto_map", "name_or_path"),
    *("transformers_version", "transformers.js", "tokenizer_class", "language", "xla_device", "use_bfloat16"),
    *("custom_pipelines", "unsloth_", "is_causal"),  # families check the last; encoders do not read it
    *("use_cache", "return_dict", "output_", "torchscript", "gradient_checkpointing", "chunk_size_feed_forward"),
    *("id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "task_specific_params", "initializer_"),
    # How texts are generated, which files of before transformers 5 say here:
    *("max_length", "min_length", "do_sample", "early_stopping", "num_beam", "temperature", "top_k", "top_p", "prefix"),
    *("typical_p", "repetition_penalty", "length_penalty", "diversity_penalty", "exponential_decay_length_penalty"),
    *("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "encoder_repetition_penalty", "num_return_sequences"),
    *(
        "bad_words_ids",
        "forced_",
        "remove_invalid_values",
        "suppress_tokens",
        "begin_suppress_tokens",
        "tf_legacy_loss",
    ),
    *("epsilon_cutoff", "eta_cutoff", "num_assistant_tokens", "assistant_", "target_lookbehind"),
)
_REFUSED = {  # keys that need another way out than the unknown ones
    "quantization_config": "its weights are quantized; load them with transformers, `dequantize()` and save them",
    "transformers_weights": "only model.safetensors and its index are read; rename the file that it names",
}
_UNKNOWN = "unknown, and may change what the network computes; take it out if it does not"
_UNSET = (None, False, {}, [], "")  # a key with one of these changes nothing
_SAME_FUNCTION = {  # other names of activations
    "gelu_python": "gelu",
    **dict.fromkeys(("gelu_fast", "gelu_accurate", "gelu_pytorch_tanh", "gelu_python_tanh"), "gelu_new"),
    "swish": "silu",
}
# Bounds beyond every network there is. A model is built before its shapes are compared with those of the weights, which
# costs time and memory for every layer, and tensors of more than 2^63 elements cannot even be described.
_MOST_LAYERS = 1000
_LARGEST = 1 << 24  # of any other whole number
_LARGEST_FLOAT = 1e38  # about what fp32 holds
_RULES = {
    int: "must be a whole number",
    float: f"must be a positive number below {_LARGEST_FLOAT:g}",
    bool: "must be true or false",
    str: "must be a name",
    dict: "must be an object",
    list: "must be a list",
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the settings of a family's config.json translate into ours."""

    same: dict[str, str]  # keys of config.json, and ours of the same value
    defaults: dict[str, Any]  # of keys that are left out: what the configuration class in transformers says
    training: dict[str, str]  # as `same`, for settings that act in training alone: written, not read
    activation_key: str
    activations: dict[Activation, str]
    computes: dict[str, Any]  # keys of config.json, with the one value that they have in ours; the default there
    # Ours that are in all of its models, where they are not our defaults; what no table names has its default in all:
    fixed: dict[str, Any] = field(default_factory=dict)
    translated: tuple[str, ...] = ()  # ours that methods of the family read and write
    read: dict[str, Any] = field(default_factory=dict)  # keys that a family looks at beyond these tables; their types
    silent: tuple[str, ...] = ()  # keys, or their beginnings, of heads that we do not have and of how to compute
    other_names: dict[str, str] = field(default_factory=dict)  # of keys, which transformers reads as well

    def complete(self, theirs: dict[str, Any]) -> dict[str, Any]:
        """Return a config.json with its keys under their own names, and those that it leaves out.

        Raises `ConfigError` for a key that it has twice, with different values.
        """
        for other, key in self.other_names.items():
            twice = other in theirs and theirs.get(key, theirs[other]) != theirs[other]
            check(not twice, other, shown(theirs.get(other)), f"{key} is another one; leave out either")
        return self.defaults | {self.other_names.get(key, key): value for key, value in theirs.items()}

    def check(self, theirs: dict[str, Any], config_type: type) -> None:
        """Raise `ConfigError` for the first value in a complete config.json of a wrong type or an absurd size.

        `config_type` is our configuration, whose fields say the types of the keys in `same`.
        """
        types = {**get_type_hints(config_type), "vocab_size": int}
        for key, own in {**self.same, "vocab_size": "vocab_size"}.items():
            check_value(
                key, theirs[key], types[own], least=1, most=_MOST_LAYERS if own.endswith("layers") else _LARGEST
            )
        for key, kind in {self.activation_key: str, **self.read}.items():
            check_value(key, theirs[key], kind)

    def activation(self, name: str) -> Activation | None:
        """Return our activation of a name, None for one that we do not have."""
        named = {_SAME_FUNCTION.get(their, their): own for own, their in self.activations.items()}
        return named.get(_SAME_FUNCTION.get(name, name))

    def refused(self, theirs: dict[str, Any]) -> tuple[str, str] | None:
        """Return the first key that may change what the network computes in a way that we do not know, and why."""
        known = {*self.same, *self.training, *self.computes, *self.read, self.activation_key}
        for key, value in theirs.items():
            silent = key.startswith((*_SILENT, *self.silent)) or key.endswith("_token_id")
            if key not in known and not silent and value not in _UNSET:
                return key, _REFUSED.get(key, _UNKNOWN)
        return None


def check_value(key: str, value: Any, kind: Any, *, least: int = 0, most: int = _LARGEST) -> None:
    """Raise `ConfigError` for a value of another type than `kind`, such as `int` or `int | None`, or out of bounds.

    `least` and `most` are bounds of whole numbers. Infinities and what is no number are no numbers.
    """
    kind, *others = get_args(kind) or (kind,)
    if type(value) in others:
        return
    fits = type(value) in ((int, float) if kind is float else (kind,))  # true is no number
    rule = _RULES[kind]
    if kind is int:
        fits, rule = fits and least <= value <= most, f"{rule} from {least} to {most}"
    elif kind is float:
        fits = fits and 0 < value < _LARGEST_FLOAT
    if not fits:
        written = as_written(value)
        raise ConfigError(f"{key}={reprlib.repr(value) if written is value else written}: {rule}")


def shown(value: Any) -> str:
    """Return a value of any type and size as a few characters."""
    text = reprlib.repr(value)
    return text[1:-1] if isinstance(value, str) else text

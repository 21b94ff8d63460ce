"""Llama, and Mistral with its sliding window, in Hugging Face's layout: `LlamaForCausalLM`, `MistralForCausalLM`.

Holds names and configuration. Rotary pairs are (i, i + E/2) there as here, so queries and keys keep their order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

from pretrain.hub.config_json import SIZES, Settings, check_value
from pretrain.hub.family import Family, Tensors
from pretrain.hub.rope import rope_parameters, whole_rope_fields
from pretrain.hub.task_heads import LAST_TOKEN, SPANS, TOKENS, Heads
from pretrain.models.decoder import DecoderConfig
from pretrain.models.layers import Activation, Norm, Positions
from pretrain.models.rotary import Scaling


class Llama(Family):
    """Pre-norm decoder with RMSNorm, rotary positions and SwiGLU."""

    config_type = DecoderConfig
    model_type = "llama"
    architecture = "LlamaForCausalLM"
    whole_heads: ClassVar[bool] = True  # the width is a multiple of the heads, whatever the width of a head is

    tensors = Tensors(
        names={
            "embedding": "model.embed_tokens",
            "blocks.#.attention_norm": "model.layers.#.input_layernorm",
            "blocks.#.attention.qkv": tuple(f"model.layers.#.self_attn.{name}_proj" for name in "qkv"),
            "blocks.#.attention.out": "model.layers.#.self_attn.o_proj",
            "blocks.#.mlp_norm": "model.layers.#.post_attention_layernorm",
            "blocks.#.mlp.up": ("model.layers.#.mlp.gate_proj", "model.layers.#.mlp.up_proj"),
            "blocks.#.mlp.down": "model.layers.#.mlp.down_proj",
            "final_norm": "model.norm",
            "head": "lm_head",
        },
        prefix="model.",
        derived=(".rotary_emb.inv_freq",),
        tied={"lm_head.weight": "model.embed_tokens.weight"},
    )
    settings = Settings(
        same=SIZES
        | {"num_key_value_heads": "kv_heads", "rms_norm_eps": "norm_eps", "tie_word_embeddings": "tie_embeddings"},
        defaults={
            "vocab_size": 32000,
            "max_position_embeddings": 2048,
            "hidden_size": 4096,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": None,
            "head_dim": None,
            "intermediate_size": 11008,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-6,
            "rope_parameters": None,
            "rope_scaling": None,  # before transformers 5, as is the next
            "rope_theta": 10_000.0,
            "tie_word_embeddings": False,
        },
        training={"attention_dropout": "attention_dropout"},
        activation_key="hidden_act",
        activations={Activation.swiglu: "silu"},
        fixed={"positions": Positions.rotary, "norm": Norm.rmsnorm, "bias": False},
        translated=("attention_width", "rope_theta", "rope_scaling"),
        computes={
            "attention_bias": False,
            "mlp_bias": False,
            "rope_interleaved": False,
            "partial_rotary_factor": 1.0,
        },
        read={
            "head_dim": int | None,
            "rope_parameters": dict | None,
            "rope_scaling": dict | None,
            "rope_theta": float | None,
        },
        silent=("pretraining_tp", "max_sequence_length", "is_llama_config"),
    )
    heads = Heads(
        sequence=LAST_TOKEN,
        span=replace(SPANS, prefix="transformer."),
        token=replace(TOKENS, names={"classifier": "score"}),
    )

    def differences(self, config: DecoderConfig) -> Iterator[str]:
        yield from super().differences(config)
        if self.whole_heads and config.width % config.heads:
            yield self.lacks("heads", config.heads, f"where they divide model.width={config.width}")

    def to_hf(self, config: DecoderConfig, vocab_size: int) -> dict[str, Any]:
        return {
            **super().to_hf(config, vocab_size),
            "head_dim": config.head_width,
            "rope_parameters": rope_parameters(config),
            # What readers older than transformers 5 look at:
            "rope_theta": config.rope_theta,
            "rope_scaling": None if config.rope_scaling.kind is Scaling.none else rope_parameters(config),
        }

    def derived(self, theirs: dict[str, Any]) -> dict[str, Any]:
        heads, width = theirs["num_attention_heads"], theirs["hidden_size"]
        if width % heads and (self.whole_heads or theirs["head_dim"] is None):
            raise self.refusal("num_attention_heads", heads, f"it divides hidden_size={width}")
        key = "rope_scaling" if theirs["rope_scaling"] else "rope_parameters"  # the first wins in transformers, too
        length, theta = theirs["max_position_embeddings"], theirs["rope_theta"]
        rope = whole_rope_fields(self, key, theirs[key] or {}, theta=theta, length=length)
        return {**rope, "attention_width": attention_width(theirs, theirs["head_dim"])}


def attention_width(theirs: dict[str, Any], head_dim: int | None) -> int | None:
    """Return the width of all heads of such a width; None for that of the model."""
    if head_dim is None:
        return None
    width = theirs["num_attention_heads"] * head_dim
    check_value("head_dim * num_attention_heads", width, int, least=1)
    return None if width == theirs["hidden_size"] else width


class Mistral(Llama):
    """Llama whose every layer sees `window` keys up to the query itself."""

    model_type = "mistral"
    architecture = "MistralForCausalLM"
    whole_heads = False

    settings = replace(
        Llama.settings,
        same=Llama.settings.same | {"sliding_window": "window"},
        defaults=Llama.settings.defaults
        | {
            "max_position_embeddings": 131072,
            "num_key_value_heads": 8,
            "intermediate_size": 14336,
            "sliding_window": 4096,
        },
        computes=Llama.settings.computes | {"layer_types": None},
    )
    heads = replace(Llama.heads, span=SPANS)

"""Gemma 3 in Hugging Face's layout, the model of text alone: `Gemma3ForCausalLM`.

Holds names and configuration. Models that also see images have another `model_type`, gemma3, and are not read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pretrain.hub.config_json import SIZES, Settings, check_value
from pretrain.hub.families.llama import attention_width
from pretrain.hub.family import Family, Tensors
from pretrain.hub.layer_types import GLOBAL, LOCAL, global_layers, layer_types, rope_of
from pretrain.hub.rope import rope_parameters, rope_theta, whole_rope_fields
from pretrain.hub.task_heads import LAST_TOKEN, Heads
from pretrain.models.decoder import DecoderConfig
from pretrain.models.layers import Activation, Norm, Order, Positions, QKNorm
from pretrain.models.rotary import Scaling


class Gemma3Text(Family):
    """Decoder with norms before and after its branches, most layers with a window and a rotary base of their own."""

    config_type = DecoderConfig
    model_type = "gemma3_text"
    architecture = "Gemma3ForCausalLM"

    tensors = Tensors(
        names={
            "embedding": "model.embed_tokens",
            "blocks.#.attention_norm": "model.layers.#.input_layernorm",
            "blocks.#.attention.qkv": tuple(f"model.layers.#.self_attn.{name}_proj" for name in "qkv"),
            "blocks.#.attention.q_norm": "model.layers.#.self_attn.q_norm",
            "blocks.#.attention.k_norm": "model.layers.#.self_attn.k_norm",
            "blocks.#.attention.out": "model.layers.#.self_attn.o_proj",
            "blocks.#.attention_output_norm": "model.layers.#.post_attention_layernorm",
            "blocks.#.mlp_norm": "model.layers.#.pre_feedforward_layernorm",
            "blocks.#.mlp.up": ("model.layers.#.mlp.gate_proj", "model.layers.#.mlp.up_proj"),
            "blocks.#.mlp.down": "model.layers.#.mlp.down_proj",
            "blocks.#.mlp_output_norm": "model.layers.#.post_feedforward_layernorm",
            "final_norm": "model.norm",
            "head": "lm_head",
        },
        prefix="model.",
        tied={"lm_head.weight": "model.embed_tokens.weight"},
    )
    settings = Settings(
        same=SIZES
        | {"num_key_value_heads": "kv_heads", "rms_norm_eps": "norm_eps", "tie_word_embeddings": "tie_embeddings"},
        defaults={
            "vocab_size": 262208,
            "max_position_embeddings": 131072,
            "hidden_size": 2304,
            "num_hidden_layers": 26,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "query_pre_attn_scalar": 256,
            "intermediate_size": 9216,
            "hidden_activation": "gelu_pytorch_tanh",
            "rms_norm_eps": 1e-6,
            "sliding_window": 4096,
            "layer_types": None,
            "rope_parameters": None,
            "tie_word_embeddings": True,
            # Before transformers 5:
            "sliding_window_pattern": 6,
            "rope_scaling": None,
            "rope_theta": 1_000_000.0,
            "rope_local_base_freq": 10_000.0,
        },
        training={"attention_dropout": "attention_dropout"},
        activation_key="hidden_activation",
        activations={
            Activation.geglu_tanh: "gelu_pytorch_tanh",
            Activation.geglu: "gelu",
            Activation.swiglu: "silu",
        },
        fixed={
            "positions": Positions.rotary,
            "order": Order.sandwich,
            "norm": Norm.zero_centered_rmsnorm,
            "bias": False,
            "qk_norm": QKNorm.head,
            "embedding_scale": True,
        },
        translated=(
            *("attention_width", "score_width", "window", "global_every", "global_first"),
            *("rope_theta", "local_rope_theta", "rope_scaling"),
        ),
        computes={
            "attention_bias": False,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "use_bidirectional_attention": False,
        },
        read={
            "head_dim": int,
            "query_pre_attn_scalar": int,
            "sliding_window": int | None,
            "layer_types": list | None,
            "sliding_window_pattern": int,
            "rope_parameters": dict | None,
            "rope_scaling": dict | None,
            "rope_theta": float,
            "rope_local_base_freq": float,
        },
        silent=("cache_implementation",),
    )
    heads = Heads(sequence=LAST_TOKEN, span=None, token=None)

    def differences(self, config: DecoderConfig) -> Iterator[str]:
        yield from super().differences(config)
        if config.width % config.heads:
            yield self.lacks("heads", config.heads, f"where they divide model.width={config.width}")
        local = config.local_rope_theta is None and LOCAL in layer_types(config)
        if local and config.rope_scaling.kind is not Scaling.none:
            yield self.lacks("local_rope_theta", None, "which scales no frequencies of layers with a window")

    def to_hf(self, config: DecoderConfig, vocab_size: int) -> dict[str, Any]:
        everywhere, local = rope_parameters(config), config.local_rope_theta or config.rope_theta
        return {
            **super().to_hf(config, vocab_size),
            "head_dim": config.head_width,
            "query_pre_attn_scalar": config.score_width or config.head_width,
            **({} if config.window is None else {"sliding_window": config.window}),
            "layer_types": layer_types(config),
            "rope_parameters": {GLOBAL: everywhere, LOCAL: {"rope_type": "default", "rope_theta": local}},
            # What readers older than transformers 5 look at:
            "rope_theta": config.rope_theta,
            "rope_local_base_freq": local,
            "rope_scaling": None if config.rope_scaling.kind is Scaling.none else everywhere,
        }

    def derived(self, theirs: dict[str, Any]) -> dict[str, Any]:
        for key in ("head_dim", "query_pre_attn_scalar"):
            check_value(key, theirs[key], int, least=1)
        heads, width, head_dim = theirs["num_attention_heads"], theirs["hidden_size"], theirs["head_dim"]
        if width % heads:
            raise self.refusal("num_attention_heads", heads, f"it divides hidden_size={width}")
        score_width = theirs["query_pre_attn_scalar"]
        key, rope = rope_of(self, theirs, GLOBAL)
        if theirs["rope_scaling"]:
            # A kind under its older name, `type`, is not one that transformers reads here.
            key, rope = "rope_scaling", {"rope_type": "default", **rope, **theirs["rope_scaling"]}
        return {
            "attention_width": attention_width(theirs, head_dim),
            "score_width": None if score_width == head_dim else score_width,
            **whole_rope_fields(self, key, rope, theta=theirs["rope_theta"], length=theirs["max_position_embeddings"]),
            **self._windows(theirs),
        }

    def _windows(self, theirs: dict[str, Any]) -> dict[str, Any]:
        """Return the settings of layers with a window: none where all layers see all keys."""
        layers, types = theirs["num_hidden_layers"], theirs["layer_types"]
        if types is None:
            every = theirs["sliding_window_pattern"]
            check_value("sliding_window_pattern", every, int, least=1)
            types = [LOCAL if (layer + 1) % every else GLOBAL for layer in range(layers)]
        every, first = global_layers(self, types, layers)
        if every == 1:
            return {}
        check_value("sliding_window", theirs["sliding_window"], int, least=1)
        return {
            "window": theirs["sliding_window"],
            "global_every": every,
            "global_first": first,
            "local_rope_theta": rope_theta(self, *rope_of(self, theirs, LOCAL), theirs["rope_local_base_freq"]),
        }

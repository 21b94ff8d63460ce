"""Llama, and Mistral with its sliding window, in Hugging Face's layout: `LlamaForCausalLM`, `MistralForCausalLM`.

Holds names and configuration. Rotary pairs are (i, i + E/2) there as here, so queries and keys keep their order.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pretrain.hub.config_json import SIZES, Settings
from pretrain.hub.family import LAST_TOKEN, SPANS, TOKENS, Family, Heads, Tensors
from pretrain.models.decoder import DecoderConfig
from pretrain.models.layers import Activation, Norm, Positions


class Llama(Family):
    """Pre-norm decoder with RMSNorm, rotary positions and SwiGLU."""

    config_type = DecoderConfig
    model_type = "llama"
    architecture = "LlamaForCausalLM"

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
        fixed={
            "positions": Positions.rotary,
            "norm": Norm.rmsnorm,
            "bias": False,
            "window": None,
            "global_every": None,
        },
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
            "rope_theta": float,
        },
        silent=("pretraining_tp", "max_sequence_length", "is_llama_config"),
    )
    heads = Heads(
        sequence=LAST_TOKEN,
        span=replace(SPANS, prefix="transformer."),
        token=replace(TOKENS, names={"classifier": "score"}),
    )

    def to_hf(self, config: DecoderConfig, vocab_size: int) -> dict[str, Any]:
        return {
            **super().to_hf(replace(config, kv_heads=config.num_kv_heads), vocab_size),
            "head_dim": config.head_width,
            "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
            "rope_theta": config.rope_theta,  # what readers older than transformers 5 look at
        }

    def network(self, theirs: dict[str, Any]) -> DecoderConfig:
        same = super().network(theirs)
        if theirs["head_dim"] is not None:
            self.expect(theirs, head_dim=same.head_width)
        key = "rope_scaling" if theirs["rope_scaling"] else "rope_parameters"  # the first wins in transformers, too
        same.rope_theta = self.rope_theta(key, theirs[key] or {}, theirs["rope_theta"])
        return same


class Mistral(Llama):
    """Llama whose every layer sees `window` keys up to the query itself."""

    model_type = "mistral"
    architecture = "MistralForCausalLM"

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
        fixed={key: value for key, value in Llama.settings.fixed.items() if key != "window"},
        computes=Llama.settings.computes | {"layer_types": None},
    )
    heads = replace(Llama.heads, span=SPANS)

"""Phi-3 and Phi-4-mini in Hugging Face's layout: `Phi3ForCausalLM`.

Holds what differs from Llama: fused projections, in the order of ours, and rotary positions in a part of each head.
Their scaling for 128k tokens (longrope) is refused: which frequencies hold depends on how long the text is.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pretrain.hub.config_json import SIZES, Settings
from pretrain.hub.family import Family, Tensors
from pretrain.hub.rope import rope_fields, rope_parameters
from pretrain.hub.task_heads import LAST_TOKEN, TOKENS, Heads
from pretrain.models.decoder import DecoderConfig
from pretrain.models.layers import Activation, Norm, Positions


class Phi3(Family):
    """Pre-norm decoder with RMSNorm, rotary positions and SwiGLU, perhaps with a window."""

    config_type = DecoderConfig
    model_type = "phi3"
    architecture = "Phi3ForCausalLM"

    tensors = Tensors(
        names={
            "embedding": "model.embed_tokens",
            "blocks.#.attention_norm": "model.layers.#.input_layernorm",
            "blocks.#.attention.qkv": "model.layers.#.self_attn.qkv_proj",
            "blocks.#.attention.out": "model.layers.#.self_attn.o_proj",
            "blocks.#.mlp_norm": "model.layers.#.post_attention_layernorm",
            "blocks.#.mlp.up": "model.layers.#.mlp.gate_up_proj",
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
        | {
            "num_key_value_heads": "kv_heads",
            "rms_norm_eps": "norm_eps",
            "sliding_window": "window",
            "tie_word_embeddings": "tie_embeddings",
        },
        defaults={
            "vocab_size": 32064,
            "max_position_embeddings": 4096,
            "hidden_size": 3072,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": None,
            "intermediate_size": 8192,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "sliding_window": None,
            "rope_parameters": None,
            "rope_scaling": None,  # before transformers 5, as are the next two
            "rope_theta": 10_000.0,
            "partial_rotary_factor": 1.0,
            "tie_word_embeddings": False,
        },
        training={"embd_pdrop": "dropout", "resid_pdrop": "dropout", "attention_dropout": "attention_dropout"},
        activation_key="hidden_act",
        activations={Activation.swiglu: "silu"},
        fixed={"positions": Positions.rotary, "norm": Norm.rmsnorm, "bias": False},
        translated=("rope_theta", "rotary_share"),
        computes={},
        read={
            "rope_parameters": dict | None,
            "rope_scaling": dict | None,
            "rope_theta": float,
            "partial_rotary_factor": float,
        },
        silent=("original_max_position_embeddings", "full_attn_mod", "interpolate_factor"),
    )
    heads = Heads(sequence=LAST_TOKEN, span=None, token=replace(TOKENS, names={"classifier": "score"}))

    def to_hf(self, config: DecoderConfig, vocab_size: int) -> dict[str, Any]:
        return {
            **super().to_hf(config, vocab_size),
            "original_max_position_embeddings": config.max_seq_len,
            "rope_parameters": rope_parameters(config),
            # What readers older than transformers 5 look at:
            "rope_theta": config.rope_theta,
            "partial_rotary_factor": config.rotary_share,
            "rope_scaling": None,
            # Where nothing is said, it is that of the released tokenizer, which small vocabularies do not have.
            "pad_token_id": None,
        }

    def derived(self, theirs: dict[str, Any]) -> dict[str, Any]:
        key = "rope_scaling" if theirs["rope_scaling"] else "rope_parameters"  # the first wins in transformers, too
        rope = theirs[key] or {}
        # Whatever a scaling is called (longrope, su, yarn), transformers computes longrope's.
        name = f"{key}.rope_type" if "rope_type" in rope else f"{key}.type"
        self.expect({name: rope.get(name.rpartition(".")[2], "default")}, **{name: "default"})
        found = rope_fields(
            self,
            key,
            rope,
            theta=theirs["rope_theta"],
            length=theirs["max_position_embeddings"],
            share=theirs["partial_rotary_factor"],
        )
        return {own: found[own] for own in ("rope_theta", "rotary_share")}

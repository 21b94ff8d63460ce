"""Llama, and Mistral with its sliding window, in Hugging Face's layout: `LlamaForCausalLM`, `MistralForCausalLM`.

Holds names and configuration. Rotary pairs are (i, i + E/2) there as here, so queries and keys keep their order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pretrain.errors import check
from pretrain.models.decoder import DecoderConfig
from pretrain.models.hub.base import Family, Part, expect, require
from pretrain.models.layers import Activation, Norm, Positions


class Llama(Family):
    """See `Family`."""

    model_type = "llama"
    architecture = "LlamaForCausalLM"
    prefix = "model."
    derived = (".rotary_emb.inv_freq",)

    def check(self, config: DecoderConfig) -> None:
        self._check_blocks(config)
        require(config, self.architecture, window=None)

    def _check_blocks(self, config: DecoderConfig) -> None:
        blocks = {"norm": Norm.rmsnorm, "activation": Activation.swiglu, "bias": False}
        require(config, self.architecture, positions=Positions.rotary, **blocks)

    def parts(self, config: DecoderConfig, vocab_size: int) -> Iterator[Part]:
        width, hidden = config.width, config.hidden_width
        queries, keys = config.width, config.num_kv_heads * config.head_width
        yield Part("model.embed_tokens.weight", "embedding.weight", (vocab_size, width))
        for layer in range(config.layers):
            theirs, ours = f"model.layers.{layer}", f"blocks.{layer}"
            yield Part(f"{theirs}.input_layernorm.weight", f"{ours}.attention_norm.weight", (width,))
            qkv = f"{ours}.attention.qkv.weight"
            yield Part(f"{theirs}.self_attn.q_proj.weight", qkv, (queries, width))
            yield Part(f"{theirs}.self_attn.k_proj.weight", qkv, (keys, width), row=queries)
            yield Part(f"{theirs}.self_attn.v_proj.weight", qkv, (keys, width), row=queries + keys)
            yield Part(f"{theirs}.self_attn.o_proj.weight", f"{ours}.attention.out.weight", (width, queries))
            yield Part(f"{theirs}.post_attention_layernorm.weight", f"{ours}.mlp_norm.weight", (width,))
            yield Part(f"{theirs}.mlp.gate_proj.weight", f"{ours}.mlp.up.weight", (hidden, width))
            yield Part(f"{theirs}.mlp.up_proj.weight", f"{ours}.mlp.up.weight", (hidden, width), row=hidden)
            yield Part(f"{theirs}.mlp.down_proj.weight", f"{ours}.mlp.down.weight", (width, hidden))
        yield Part("model.norm.weight", "final_norm.weight", (width,))
        if not config.tie_embeddings:
            yield Part("lm_head.weight", "head.weight", (vocab_size, width))

    def theirs(self, config: DecoderConfig, vocab_size: int) -> dict[str, Any]:
        return {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "vocab_size": vocab_size,
            "max_position_embeddings": config.max_seq_len,
            "hidden_size": config.width,
            "intermediate_size": config.hidden_width,
            "num_hidden_layers": config.layers,
            "num_attention_heads": config.heads,
            "num_key_value_heads": config.num_kv_heads,
            "head_dim": config.head_width,
            "hidden_act": "silu",
            "rms_norm_eps": config.norm_eps,
            "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
            "rope_theta": config.rope_theta,  # what readers older than transformers 5 look at
            "tie_word_embeddings": config.tie_embeddings,
            "attention_bias": False,
            "mlp_bias": False,
            "attention_dropout": config.attention_dropout,
            "initializer_range": config.init_std,
        }

    def ours(self, theirs: dict[str, Any]) -> DecoderConfig:
        expect(theirs, hidden_act="silu", attention_bias=False, mlp_bias=False, rope_scaling=None)
        expect(theirs, partial_rotary_factor=1.0)
        width, heads = theirs["hidden_size"], theirs["num_attention_heads"]
        expect({"head_dim": theirs.get("head_dim") or width // heads}, head_dim=width // heads)
        rope = theirs.get("rope_parameters") or {}
        kind = rope.get("rope_type", "default")
        check(kind == "default", "config.json: rope_type", kind, "has no counterpart in model=decoder (default has)")
        return DecoderConfig(
            max_seq_len=theirs["max_position_embeddings"],
            width=width,
            layers=theirs["num_hidden_layers"],
            heads=heads,
            kv_heads=theirs.get("num_key_value_heads"),
            mlp_width=theirs["intermediate_size"],
            norm=Norm.rmsnorm,
            norm_eps=theirs.get("rms_norm_eps", 1e-6),
            activation=Activation.swiglu,
            positions=Positions.rotary,
            rope_theta=float(rope.get("rope_theta") or theirs.get("rope_theta", 10_000.0)),
            bias=False,
            tie_embeddings=theirs.get("tie_word_embeddings", False),
        )


class Mistral(Llama):
    """Llama whose every layer sees `window` keys up to the query itself."""

    model_type = "mistral"
    architecture = "MistralForCausalLM"

    def check(self, config: DecoderConfig) -> None:
        self._check_blocks(config)
        require(config, self.architecture, global_every=None)

    def theirs(self, config: DecoderConfig, vocab_size: int) -> dict[str, Any]:
        return {**super().theirs(config, vocab_size), "sliding_window": config.window}

    def ours(self, theirs: dict[str, Any]) -> DecoderConfig:
        expect(theirs, layer_types=None)
        same = super().ours(theirs)
        same.window = theirs.get("sliding_window", 4096)
        return same

"""GPT-2 in Hugging Face's layout: `GPT2LMHeadModel`.

Holds names and configuration; its projections are `Conv1D`, which keeps weights transposed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pretrain.errors import check
from pretrain.models.decoder import DecoderConfig
from pretrain.models.hub.base import Family, Part, expect, require
from pretrain.models.layers import Activation, Norm, Positions

_ACTIVATIONS = {Activation.gelu_tanh: "gelu_new", Activation.gelu: "gelu"}


class GPT2(Family):
    """See `Family`."""

    model_type = "gpt2"
    architecture = "GPT2LMHeadModel"
    prefix = "transformer."
    derived = (".attn.bias", ".attn.masked_bias")

    def check(self, config: DecoderConfig) -> None:
        require(config, self.architecture, positions=Positions.learned, norm=Norm.layernorm, bias=True, window=None)
        rule = f"has no counterpart in {self.architecture}, which knows gelu and gelu_tanh only"
        check(config.activation in _ACTIVATIONS, "model.activation", config.activation.value, rule)
        rule = f"has no counterpart in {self.architecture}, where every head has its own keys and values"
        check(config.num_kv_heads == config.heads, "model.kv_heads", config.kv_heads, rule)

    def parts(self, config: DecoderConfig, vocab_size: int) -> Iterator[Part]:
        width, hidden = config.width, config.hidden_width
        yield Part("transformer.wte.weight", "embedding.weight", (vocab_size, width))
        yield Part("transformer.wpe.weight", "position_embedding.weight", (config.max_seq_len, width))
        for layer in range(config.layers):
            theirs, ours = f"transformer.h.{layer}", f"blocks.{layer}"
            for name, own, rows, columns in (
                ("ln_1", "attention_norm", width, None),
                ("attn.c_attn", "attention.qkv", 3 * width, width),
                ("attn.c_proj", "attention.out", width, width),
                ("ln_2", "mlp_norm", width, None),
                ("mlp.c_fc", "mlp.up", hidden, width),
                ("mlp.c_proj", "mlp.down", width, hidden),
            ):
                shape = (rows,) if columns is None else (rows, columns)
                transposed = columns is not None
                yield Part(f"{theirs}.{name}.weight", f"{ours}.{own}.weight", shape, transposed=transposed)
                yield Part(f"{theirs}.{name}.bias", f"{ours}.{own}.bias", (rows,))
        yield Part("transformer.ln_f.weight", "final_norm.weight", (width,))
        yield Part("transformer.ln_f.bias", "final_norm.bias", (width,))
        if not config.tie_embeddings:
            yield Part("lm_head.weight", "head.weight", (vocab_size, width))

    def theirs(self, config: DecoderConfig, vocab_size: int) -> dict[str, Any]:
        return {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "vocab_size": vocab_size,
            "n_positions": config.max_seq_len,
            "n_embd": config.width,
            "n_layer": config.layers,
            "n_head": config.heads,
            "n_inner": config.mlp_width,
            "activation_function": _ACTIVATIONS[config.activation],
            "layer_norm_epsilon": config.norm_eps,
            "tie_word_embeddings": config.tie_embeddings,
            "embd_pdrop": config.dropout,
            "resid_pdrop": config.dropout,
            "attn_pdrop": config.attention_dropout,
            "initializer_range": config.init_std,
        }

    def ours(self, theirs: dict[str, Any]) -> DecoderConfig:
        expect(theirs, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
        named = theirs.get("activation_function", "gelu_new")
        activations = {"gelu_pytorch_tanh": Activation.gelu_tanh} | {name: own for own, name in _ACTIVATIONS.items()}
        check(named in activations, "config.json: activation_function", named, f"ours are {', '.join(activations)}")
        return DecoderConfig(
            max_seq_len=theirs["n_positions"],
            width=theirs["n_embd"],
            layers=theirs["n_layer"],
            heads=theirs["n_head"],
            mlp_width=theirs.get("n_inner"),
            activation=activations[named],
            norm_eps=theirs.get("layer_norm_epsilon", 1e-5),
            tie_embeddings=theirs.get("tie_word_embeddings", True),
        )

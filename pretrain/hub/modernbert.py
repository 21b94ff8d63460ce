"""ModernBERT in Hugging Face's layout: `ModernBertForMaskedLM`.

Holds names and configuration. Its fused projections have the order of ours: queries, keys, values; gate, up.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pretrain.hub.family import SIZES, Family, HeadLayer, Heads, Settings, TaskHead, Tensors
from pretrain.models.encoder import EncoderConfig, Order
from pretrain.models.layers import Activation, Positions

_BIASES = ("attention_bias", "mlp_bias", "classifier_bias")  # beside that of the norms; ours are all there or none
_GLOBAL, _LOCAL = "full_attention", "sliding_attention"
# All of its heads begin with the transform that masked language modelling trained.
_HEAD = TaskHead(
    names={"transform.dense": "head.dense", "transform.norm": "head.norm", "classifier": "classifier"},
    layers=(HeadLayer.transform, HeadLayer.dropout),
)


class ModernBert(Family):
    """Pre-norm encoder with rotary positions and gated MLPs, most layers with a window."""

    config_type = EncoderConfig
    model_type = "modernbert"
    architecture = "ModernBertForMaskedLM"

    tensors = Tensors(
        names={
            "embedding": "model.embeddings.tok_embeddings",
            "embedding_norm": "model.embeddings.norm",
            "blocks.#.attention_norm": "model.layers.#.attn_norm",
            "blocks.#.attention.qkv": "model.layers.#.attn.Wqkv",
            "blocks.#.attention.out": "model.layers.#.attn.Wo",
            "blocks.#.mlp_norm": "model.layers.#.mlp_norm",
            "blocks.#.mlp.up": "model.layers.#.mlp.Wi",
            "blocks.#.mlp.down": "model.layers.#.mlp.Wo",
            "final_norm": "model.final_norm",
            "transform.dense": "head.dense",
            "transform.norm": "head.norm",
            "head": "decoder",
        },
        prefix="model.",
        derived=("_inv_freq",),
        repeated=("decoder.weight",),
    )
    settings = Settings(
        same=SIZES | {"norm_eps": "norm_eps", "norm_bias": "bias", "tie_word_embeddings": "tie_embeddings"},
        defaults={"hidden_activation": "gelu", "norm_eps": 1e-5, "norm_bias": False, "tie_word_embeddings": True},
        training={"embedding_dropout": "dropout", "mlp_dropout": "dropout", "attention_dropout": "attention_dropout"},
        activation_key="hidden_activation",
        activations={Activation.geglu: "gelu", Activation.swiglu: "silu"},
        fixed={"positions": Positions.rotary, "order": Order.pre, "token_types": 0, "position_offset": 0},
        computes={"classifier_activation": "gelu", "decoder_bias": True, "rope_scaling": None},
        read=(
            *_BIASES,
            *("local_attention", "layer_types", "global_attn_every_n_layers"),
            *("rope_parameters", "global_rope_theta", "local_rope_theta"),
        ),
        silent=(
            *("classifier_pooling", "classifier_dropout", "sparse_pred"),
            *("deterministic_flash_attn", "reference_compile", "repad_logits_with_grad"),
            "position_embedding_type",  # the released file has BERT's, which its code does not read
        ),
    )
    heads = Heads(sequence=_HEAD, span=_HEAD, token=_HEAD)

    def to_hf(self, config: EncoderConfig, vocab_size: int) -> dict[str, Any]:
        local = config.rope_theta if config.window is None else config.local_rope_theta
        return {
            **super().to_hf(config, vocab_size),
            **dict.fromkeys(_BIASES, config.bias),
            **({} if config.window is None else {"local_attention": 2 * (config.window - 1)}),
            "layer_types": _layer_types(1 if config.window is None else config.global_every, config.layers),
            "rope_parameters": {
                _GLOBAL: {"rope_type": "default", "rope_theta": config.rope_theta},
                _LOCAL: {"rope_type": "default", "rope_theta": local},
            },
            # Where nothing is said, these are ids of the released tokenizer.
            **dict.fromkeys(f"{role}_token_id" for role in ("pad", "bos", "eos", "cls", "sep")),
        }

    def from_hf(self, theirs: dict[str, Any]) -> EncoderConfig:
        same = super().from_hf(theirs)
        self.expect(dict.fromkeys(_BIASES, False) | theirs, **dict.fromkeys(_BIASES, same.bias))
        every = self._global_every(theirs, same.layers)
        rope = theirs.get("rope_parameters") or {}
        for key in sorted(rope.keys() - {_GLOBAL, _LOCAL}):
            raise self.refusal(f"rope_parameters.{key}", rope[key], f"there are {_GLOBAL} and {_LOCAL}")
        everywhere = self.rope_theta(rope.get(_GLOBAL) or {}, theirs.get("global_rope_theta", 160_000.0))
        local = theirs.get("local_rope_theta", 10_000.0) or everywhere
        return replace(
            same,
            window=None if every == 1 else theirs.get("local_attention", 128) // 2 + 1,  # theirs counts both sides
            global_every=None if every == 1 else every,
            rope_theta=everywhere,
            local_rope_theta=self.rope_theta(rope.get(_LOCAL) or {}, local),
        )

    def _global_every(self, theirs: dict[str, Any], layers: int) -> int | None:
        """Return n where layers 0, n, 2n, ... see all keys, None where none does."""
        types = theirs.get("layer_types") or _layer_types(theirs.get("global_attn_every_n_layers", 3), layers)
        every = next((layer for layer in range(1, layers) if types[layer] == _GLOBAL), layers)
        every = every if _GLOBAL in types else None
        self.expect({"layer_types": types}, layer_types=_layer_types(every, layers))
        return every


def _layer_types(every: int | None, layers: int) -> list[str]:
    return [_LOCAL if every is None or layer % every else _GLOBAL for layer in range(layers)]

"""ModernBERT in Hugging Face's layout: `ModernBertForMaskedLM`.

Holds names and configuration. Its fused projections have the order of ours: queries, keys, values; gate, up.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pretrain.hub.config_json import SIZES, Settings, check_value
from pretrain.hub.family import Family, Tensors
from pretrain.hub.layer_types import GLOBAL, LOCAL, global_layers, layer_types, rope_of
from pretrain.hub.rope import rope_theta
from pretrain.hub.task_heads import HeadLayer, Heads, TaskHead
from pretrain.models.encoder import EncoderConfig
from pretrain.models.layers import Activation, Order, Positions

_BIASES = ("attention_bias", "mlp_bias", "classifier_bias")  # beside that of the norms; ours are all there or none
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
        tied={"decoder.weight": "model.embeddings.tok_embeddings.weight"},
    )
    settings = Settings(
        same=SIZES | {"norm_eps": "norm_eps", "norm_bias": "bias", "tie_word_embeddings": "tie_embeddings"},
        defaults={
            "vocab_size": 50368,
            "max_position_embeddings": 8192,
            "hidden_size": 768,
            "num_hidden_layers": 22,
            "num_attention_heads": 12,
            "intermediate_size": 1152,
            "hidden_activation": "gelu",
            "norm_eps": 1e-5,
            "norm_bias": False,
            **dict.fromkeys(_BIASES, False),
            "local_attention": 128,
            "layer_types": None,
            "rope_parameters": None,
            # Before transformers 5:
            "global_attn_every_n_layers": 3,
            "rope_scaling": None,
            "global_rope_theta": 160_000.0,
            "local_rope_theta": 10_000.0,
            "tie_word_embeddings": True,
        },
        training={"embedding_dropout": "dropout", "mlp_dropout": "dropout", "attention_dropout": "attention_dropout"},
        activation_key="hidden_activation",
        activations={Activation.geglu: "gelu", Activation.swiglu: "silu"},
        fixed={"positions": Positions.rotary, "order": Order.pre, "token_types": 0},
        translated=("window", "global_every", "global_first", "rope_theta", "local_rope_theta"),
        computes={"classifier_activation": "gelu", "decoder_bias": True},
        read={
            **dict.fromkeys(_BIASES, bool),
            "local_attention": int,
            "layer_types": list | None,
            "global_attn_every_n_layers": int,
            "rope_parameters": dict | None,
            "rope_scaling": dict | None,
            "global_rope_theta": float,
            "local_rope_theta": float | None,
        },
        silent=(
            *("classifier_pooling", "classifier_dropout", "sparse_pred"),
            *("deterministic_flash_attn", "reference_compile", "repad_logits_with_grad"),
            *("position_embedding_type", "layer_norm_eps"),  # BERT's, in the released file; its code does not read them
        ),
    )
    heads = Heads(sequence=replace(_HEAD, computes={"classifier_pooling": "cls"}), span=_HEAD, token=_HEAD)

    def to_hf(self, config: EncoderConfig, vocab_size: int) -> dict[str, Any]:
        local = config.local_rope_theta if config.window is not None else None
        return {
            **super().to_hf(config, vocab_size),
            **dict.fromkeys(_BIASES, config.bias),
            **({} if config.window is None else {"local_attention": 2 * (config.window - 1)}),
            "layer_types": layer_types(config),
            "rope_parameters": {
                GLOBAL: {"rope_type": "default", "rope_theta": config.rope_theta},
                LOCAL: {"rope_type": "default", "rope_theta": local or config.rope_theta},
            },
            # Where nothing is said, these are ids of the released tokenizer.
            **dict.fromkeys(f"{role}_token_id" for role in ("pad", "bos", "eos", "cls", "sep")),
        }

    def network(self, theirs: dict[str, Any]) -> EncoderConfig:
        same = super().network(theirs)
        self.expect(theirs, **dict.fromkeys(_BIASES, same.bias))
        every, first = self._global_layers(theirs, same.layers)
        everywhere = self._rope_theta(theirs, GLOBAL, theirs["global_rope_theta"])
        local = theirs["local_rope_theta"] or everywhere
        return replace(
            same,
            window=None if every == 1 else theirs["local_attention"] // 2 + 1,  # theirs counts both sides
            global_every=None if every == 1 else every,
            global_first=first,
            rope_theta=everywhere,
            local_rope_theta=self._rope_theta(theirs, LOCAL, local),
        )

    def _rope_theta(self, theirs: dict[str, Any], kind: str, default: float) -> float:
        """Return the base of the rotary frequencies of a kind of layers."""
        key, rope = rope_of(self, theirs, kind)
        return rope_theta(self, key, {**rope, **(theirs["rope_scaling"] or {})}, default)

    def _global_layers(self, theirs: dict[str, Any], layers: int) -> tuple[int | None, int]:
        """Return `global_every`, 1 where all layers see all keys, and `global_first`."""
        every, types = theirs["global_attn_every_n_layers"], theirs["layer_types"]
        check_value("global_attn_every_n_layers", every, int, least=1)
        if types is None:
            types = [LOCAL if layer % every else GLOBAL for layer in range(layers)]
        return global_layers(self, types, layers)

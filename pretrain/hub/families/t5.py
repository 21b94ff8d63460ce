"""T5, T5 v1.1 and Flan-T5 in Hugging Face's layout: `T5ForConditionalGeneration`.

Holds names and configuration. The table of relative positions of a side lies in its first block there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pretrain.hub.config_json import Settings, check_value
from pretrain.hub.family import Family, Tensors
from pretrain.hub.weight_files import StoredTensors, equal
from pretrain.models.encoder_decoder import EncoderDecoderConfig
from pretrain.models.init import Init
from pretrain.models.layers import Activation, Norm, Order, Positions


def _names(side: str, mlp: int) -> dict[str, str | tuple[str, ...]]:
    """Return the names of one side without its cross-attention; its MLP is sublayer number `mlp` of a block."""
    ours, theirs = f"{side}.#", f"{side}.block.#.layer"
    return {
        f"{side}_distance_embedding": f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias",
        f"{ours}.attention_norm": f"{theirs}.0.layer_norm",
        f"{ours}.attention.qkv": tuple(f"{theirs}.0.SelfAttention.{name}" for name in "qkv"),
        f"{ours}.attention.out": f"{theirs}.0.SelfAttention.o",
        f"{ours}.mlp_norm": f"{theirs}.{mlp}.layer_norm",
        f"{ours}.mlp.up": f"{theirs}.{mlp}.DenseReluDense.wi",
        f"{ours}.mlp.down": f"{theirs}.{mlp}.DenseReluDense.wo",
        f"{side}_final_norm": f"{side}.final_layer_norm",
    }


class T5(Family):
    """Pre-norm encoder-decoder with RMSNorm, relative positions and scores that are not scaled."""

    config_type = EncoderDecoderConfig
    model_type = "t5"
    architecture = "T5ForConditionalGeneration"

    tensors = Tensors(
        names={
            "embedding": "shared",
            **_names("encoder", mlp=1),
            **_names("decoder", mlp=2),
            "decoder.#.cross_norm": "decoder.block.#.layer.1.layer_norm",
            "decoder.#.cross.q": "decoder.block.#.layer.1.EncDecAttention.q",
            "decoder.#.cross.kv": tuple(f"decoder.block.#.layer.1.EncDecAttention.{name}" for name in "kv"),
            "decoder.#.cross.out": "decoder.block.#.layer.1.EncDecAttention.o",
            "head": "lm_head",
        },
        prefix="",
        derived=(".EncDecAttention.relative_attention_bias.weight",),  # in older files, and nothing reads it
        tied={"lm_head.weight": "shared.weight"},
        copies={f"{side}.embed_tokens.weight": "shared.weight" for side in ("encoder", "decoder")},
    )
    settings = Settings(
        same={
            "n_positions": "max_seq_len",  # what it was trained with; it has no limit
            "d_model": "width",
            "num_layers": "layers",
            "num_decoder_layers": "decoder_layers",
            "num_heads": "heads",
            "d_ff": "mlp_width",
            "relative_attention_num_buckets": "buckets",
            "relative_attention_max_distance": "max_distance",
            "layer_norm_epsilon": "norm_eps",
        },
        defaults={
            "vocab_size": 32128,
            "n_positions": 512,
            "d_model": 512,
            "d_kv": 64,
            "d_ff": 2048,
            "num_layers": 6,
            "num_decoder_layers": None,
            "num_heads": 8,
            "relative_attention_num_buckets": 32,
            "relative_attention_max_distance": 128,
            "layer_norm_epsilon": 1e-6,
            "feed_forward_proj": "relu",
            "tie_word_embeddings": True,
            "scale_decoder_outputs": None,
        },
        training={"dropout_rate": "dropout"},
        activation_key="feed_forward_proj",
        activations={
            Activation.relu: "relu",
            Activation.geglu_tanh: "gated-gelu",  # which means its tanh approximation
            Activation.swiglu: "gated-silu",
            Activation.gelu: "gelu",
            Activation.gelu_tanh: "gelu_new",
            Activation.silu: "silu",
        },
        fixed={
            "positions": Positions.relative,
            "order": Order.pre,
            "embedding_scale": False,
            "norm": Norm.rmsnorm,
            "bias": False,
            "attention_scale": False,
        },
        translated=("attention_width", "tie_embeddings", "head_scale"),
        computes={"is_encoder_decoder": True, "is_decoder": False},
        read={"d_kv": int, "tie_word_embeddings": bool, "scale_decoder_outputs": bool | None},
        silent=("classifier_dropout", "dense_act_fn", "is_gated_act"),
        other_names={
            "hidden_size": "d_model",
            "num_hidden_layers": "num_layers",
            "num_attention_heads": "num_heads",
            "head_dim": "d_kv",
        },
    )

    def names(self, config: EncoderDecoderConfig) -> Mapping[str, str | tuple[str, ...]]:
        names = self.tensors.names
        if not config.activation.gated:
            return names
        up = {key: name for key, name in names.items() if key.endswith(".mlp.up")}
        return names | {key: (f"{name}_0", f"{name}_1") for key, name in up.items()}

    def to_hf(self, config: EncoderDecoderConfig, vocab_size: int) -> dict[str, Any]:
        return {
            **super().to_hf(config, vocab_size),
            "d_kv": config.head_width,
            "is_encoder_decoder": True,
            # transformers 5 reads the second, and ties where no other head is stored; older ones read the first.
            "tie_word_embeddings": config.tie_embeddings,
            "scale_decoder_outputs": config.head_scale,
        }

    def derived(self, theirs: dict[str, Any]) -> dict[str, Any]:
        width = theirs["d_kv"] * theirs["num_heads"]
        check_value("d_kv * num_heads", width, int, least=1)
        # transformers 5 writes the first as true, whatever the network is.
        tied, scaled = theirs["tie_word_embeddings"], theirs["scale_decoder_outputs"]
        return {
            "attention_width": None if width == theirs["d_model"] else width,
            "tie_embeddings": tied and scaled is not False,
            "head_scale": tied if scaled is None else scaled,
            "init": Init.t5,
        }

    def as_stored(self, config: EncoderDecoderConfig, stored: StoredTensors) -> EncoderDecoderConfig:
        """Return a network whose head is the embedding unless another one is stored, as transformers 5 decides it."""
        if not stored:
            return config
        head = stored.get("lm_head.weight")
        embeddings = map(stored.get, ("shared.weight", *self.tensors.copies))
        embedding = next((found for found in embeddings if found is not None), head)
        return replace(config, tie_embeddings=head is None or equal(head, embedding))

"""BART and mBART in Hugging Face's layout: `BartForConditionalGeneration`, `MBartForConditionalGeneration`.

Holds names and configuration. Row n + 2 of a position table is the vector of position n.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pretrain.hub.config_json import Settings
from pretrain.hub.family import Family, Tensors
from pretrain.hub.weight_files import StoredTensors
from pretrain.models.encoder_decoder import EncoderDecoderConfig
from pretrain.models.layers import Activation, Order, Positions

LOGIT_BIAS = "final_logits_bias"  # their name of what is added to the logits
EMBEDDING_NORMS = {f"{side}_embedding_norm": f"model.{side}.layernorm_embedding" for side in ("encoder", "decoder")}
POSITION_TABLES = {f"{side}_position_embedding": f"model.{side}.embed_positions" for side in ("encoder", "decoder")}
FINAL_NORMS = {f"{side}_final_norm": f"model.{side}.layer_norm" for side in ("encoder", "decoder")}


def _layers(side: str) -> dict[str, str | tuple[str, ...]]:
    """Return the names of a layer of the encoder or of the decoder, without its cross-attention."""
    ours, theirs = f"{side}.#", f"model.{side}.layers.#"
    return {
        f"{ours}.attention_norm": f"{theirs}.self_attn_layer_norm",
        f"{ours}.attention.qkv": tuple(f"{theirs}.self_attn.{name}_proj" for name in "qkv"),
        f"{ours}.attention.out": f"{theirs}.self_attn.out_proj",
        f"{ours}.mlp_norm": f"{theirs}.final_layer_norm",
        f"{ours}.mlp.up": f"{theirs}.fc1",
        f"{ours}.mlp.down": f"{theirs}.fc2",
    }


BLOCKS = {
    **_layers("encoder"),
    **_layers("decoder"),
    "decoder.#.cross_norm": "model.decoder.layers.#.encoder_attn_layer_norm",
    "decoder.#.cross.q": "model.decoder.layers.#.encoder_attn.q_proj",
    "decoder.#.cross.kv": tuple(f"model.decoder.layers.#.encoder_attn.{name}_proj" for name in "kv"),
    "decoder.#.cross.out": "model.decoder.layers.#.encoder_attn.out_proj",
}


class Bart(Family):
    """Post-norm encoder-decoder with learned positions and normalised embeddings."""

    config_type = EncoderDecoderConfig
    model_type = "bart"
    architecture = "BartForConditionalGeneration"

    tensors = Tensors(
        names={"embedding": "model.shared", **POSITION_TABLES, **EMBEDDING_NORMS, **BLOCKS, "logit_bias": LOGIT_BIAS},
        prefix="model.",
        derived=(LOGIT_BIAS, ".version"),  # the bias where it is 0: see `as_stored`
        tied={"lm_head.weight": "model.shared.weight"},
        copies={f"model.{side}.embed_tokens.weight": "model.shared.weight" for side in ("encoder", "decoder")},
        rows=("logit_bias",),
    )
    settings = Settings(
        same={
            "max_position_embeddings": "max_seq_len",
            "d_model": "width",
            "encoder_layers": "layers",
            "decoder_layers": "decoder_layers",
            "encoder_attention_heads": "heads",
            "encoder_ffn_dim": "mlp_width",
            "scale_embedding": "embedding_scale",
        },
        defaults={
            "vocab_size": 50265,
            "max_position_embeddings": 1024,
            "d_model": 1024,
            "encoder_layers": 12,
            "decoder_layers": 12,
            "encoder_attention_heads": 16,
            "decoder_attention_heads": 16,
            "encoder_ffn_dim": 4096,
            "decoder_ffn_dim": 4096,
            "activation_function": "gelu",
            "scale_embedding": False,
        },
        training={
            "dropout": "dropout",
            "attention_dropout": "attention_dropout",
            "activation_dropout": "mlp_dropout",
            "init_std": "init_std",
        },
        activation_key="activation_function",
        activations={
            Activation.gelu: "gelu",
            Activation.gelu_tanh: "gelu_new",
            Activation.relu: "relu",
            Activation.silu: "silu",
        },
        fixed={"positions": Positions.learned, "position_offset": 2, "embedding_norm": True},
        translated=("head_bias",),
        computes={
            "is_encoder_decoder": True,
            "is_decoder": False,
            "tie_word_embeddings": True,
            # What the class is in transformers, and older files say:
            "normalize_before": False,
            "normalize_embedding": True,
            "add_final_layer_norm": False,
            "add_bias_logits": False,
            "static_position_embeddings": False,
        },
        read={"decoder_attention_heads": int, "decoder_ffn_dim": int},
        silent=(
            *("classif", "encoder_layerdrop", "decoder_layerdrop", "extra_pos_embeddings", "save_step"),
            "force_bos_token_to_be_generated",
        ),
        other_names={
            "hidden_size": "d_model",
            "num_hidden_layers": "encoder_layers",
            "num_attention_heads": "encoder_attention_heads",
        },
    )

    def to_hf(self, config: EncoderDecoderConfig, vocab_size: int) -> dict[str, Any]:
        return {
            **super().to_hf(config, vocab_size),
            "decoder_attention_heads": config.heads,
            "decoder_ffn_dim": config.hidden_width,
            "is_encoder_decoder": True,
            "tie_word_embeddings": True,
        }

    def network(self, theirs: dict[str, Any]) -> EncoderDecoderConfig:
        for what in ("attention_heads", "ffn_dim"):
            self.expect(theirs, **{f"decoder_{what}": theirs[f"encoder_{what}"]})
        return super().network(theirs)

    def as_stored(self, config: EncoderDecoderConfig, stored: StoredTensors) -> EncoderDecoderConfig:
        """Return a network with a bias on the logits if one is stored that is not 0: transformers writes zeros, too."""
        bias = stored.get(LOGIT_BIAS)
        return replace(config, head_bias=bias is not None and bool(bias[:].any()))

    def generation(self, special_tokens: Mapping[str, int | None]) -> dict[str, Any]:
        return {"forced_eos_token_id": special_tokens["eos"]}


class MBart(Bart):
    """BART with pre-norm blocks, and norms after the last ones."""

    model_type = "mbart"
    architecture = "MBartForConditionalGeneration"

    tensors = replace(Bart.tensors, names=Bart.tensors.names | FINAL_NORMS)
    settings = replace(
        Bart.settings,
        fixed=Bart.settings.fixed | {"order": Order.pre},
        computes=Bart.settings.computes | {"normalize_before": True, "add_final_layer_norm": True},
    )

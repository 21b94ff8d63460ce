"""Marian, of the OPUS-MT translators, in Hugging Face's layout: `MarianMTModel`.

Holds what differs from BART: positions are computed, the logits have a bias, and padding is never generated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pretrain.hub.families.bart import BLOCKS, LOGIT_BIAS, Bart
from pretrain.hub.weight_files import StoredTensors
from pretrain.models.encoder_decoder import EncoderDecoderConfig


class Marian(Bart):
    """The original Transformer, with one vocabulary for both languages and a bias on the logits."""

    model_type = "marian"
    architecture = "MarianMTModel"

    tensors = replace(
        Bart.tensors,
        names={"embedding": "model.shared", **BLOCKS, "logit_bias": LOGIT_BIAS},
        derived=(LOGIT_BIAS, ".embed_positions.weight"),
    )
    settings = replace(
        Bart.settings,
        defaults=Bart.settings.defaults | {"vocab_size": 58101, "decoder_vocab_size": None},
        fixed={},
        computes=Bart.settings.computes
        | {
            "share_encoder_decoder_embeddings": True,
            "normalize_embedding": False,
            "static_position_embeddings": True,
        },
        read=Bart.settings.read | {"decoder_vocab_size": int | None},
    )

    def to_hf(self, config: EncoderDecoderConfig, vocab_size: int) -> dict[str, Any]:
        return {
            **super().to_hf(config, vocab_size),
            "decoder_vocab_size": vocab_size,
            "share_encoder_decoder_embeddings": True,
        }

    def network(self, theirs: dict[str, Any]) -> EncoderDecoderConfig:
        if theirs["decoder_vocab_size"] is not None:
            self.expect(theirs, decoder_vocab_size=theirs["vocab_size"])
        return super().network(theirs)

    def derived(self, theirs: dict[str, Any]) -> dict[str, Any]:
        return {"head_bias": True}

    def as_stored(self, config: EncoderDecoderConfig, stored: StoredTensors) -> EncoderDecoderConfig:
        """Return a network with a bias on the logits if one is stored."""
        return replace(config, head_bias=not stored or stored.get(LOGIT_BIAS) is not None)

    def generation(self, special_tokens: Mapping[str, int | None]) -> dict[str, Any]:
        pad = special_tokens["pad"]
        return {**super().generation(special_tokens), **({} if pad is None else {"bad_words_ids": [[pad]]})}

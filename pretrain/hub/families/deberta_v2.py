"""DeBERTa-v2 and v3 in Hugging Face's layout: `DebertaV2ForMaskedLM`.

Holds names and configuration: BERT with disentangled positions in place of learned ones.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pretrain.hub.families.bert import Bert, body_names
from pretrain.hub.family import Family
from pretrain.hub.task_heads import HeadLayer, Heads, TaskHead
from pretrain.models.encoder import EncoderConfig
from pretrain.models.layers import Positions

_LAYER = "deberta.encoder.layer.#.attention.self"
_TERMS = {"p2c": "position_to_content", "c2p": "content_to_position"}
_NORMS = {"layer_norm": True, "none": False}


class DebertaV2(Family):
    """BERT with disentangled positions and no token types, or with some."""

    config_type = EncoderConfig
    model_type = "deberta-v2"
    architecture = "DebertaV2ForMaskedLM"

    tensors = replace(
        Bert.tensors,
        names={
            **body_names("deberta"),
            **{name: theirs for name, theirs in Bert.tensors.names.items() if theirs[:4] == "cls."},
            "blocks.#.attention.qkv": tuple(f"{_LAYER}.{name}_proj" for name in ("query", "key", "value")),
            "blocks.#.attention.position_query": f"{_LAYER}.pos_query_proj",
            "blocks.#.attention.position_key": f"{_LAYER}.pos_key_proj",
            "distance_embedding": "deberta.encoder.rel_embeddings",
            "distance_embedding_norm": "deberta.encoder.LayerNorm",
        },
        prefix="deberta.",
        derived=(".position_ids",),
        tied={
            "cls.predictions.decoder.weight": "deberta.embeddings.word_embeddings.weight",
            "cls.predictions.decoder.bias": "cls.predictions.bias",
        },
        beside={},
        unused=("deberta.embeddings.position_embeddings.",),  # in released generators, which do not read them
        # Where `legacy` is false; and in the released files, whose config.json does not say so.
        other_names={
            "lm_predictions.lm_head.dense.": "cls.predictions.transform.dense.",
            "lm_predictions.lm_head.LayerNorm.": "cls.predictions.transform.LayerNorm.",
            "lm_predictions.lm_head.bias": "cls.predictions.bias",
        },
    )
    settings = replace(
        Bert.settings,
        same={their: own for their, own in Bert.settings.same.items() if own != "token_types"},
        defaults={
            "vocab_size": 128100,
            "max_position_embeddings": 512,
            "hidden_size": 1536,
            "num_hidden_layers": 24,
            "num_attention_heads": 24,
            "intermediate_size": 6144,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-7,
            "type_vocab_size": 0,
            "relative_attention": False,
            "position_biased_input": True,
            "max_relative_positions": None,
            "position_buckets": None,
            "pos_att_type": None,
            "share_att_key": False,
            "norm_rel_ebd": "none",
            **dict.fromkeys(("attention_head_size", "embedding_size", "pooler_hidden_size")),
        },
        fixed={"positions": Positions.disentangled},
        translated=(*_TERMS.values(), "token_types", "max_distance", "buckets", "shared_projections", "distance_norm"),
        computes={
            "relative_attention": True,
            "position_biased_input": False,  # no learned positions beside
            "conv_kernel_size": 0,
            "pooler_hidden_act": "gelu",
            "tie_word_embeddings": True,
        },
        read={
            "type_vocab_size": int,
            "max_relative_positions": int | None,
            "position_buckets": int | None,
            "pos_att_type": str | list | None,
            "share_att_key": bool,
            "norm_rel_ebd": str,
            **dict.fromkeys(("attention_head_size", "embedding_size", "pooler_hidden_size"), int | None),
        },
        silent=("pooler_dropout", "cls_dropout", "summary_", "legacy"),
    )
    heads = Heads(
        sequence=TaskHead(
            names={"gelu.dense": "pooler.dense", "classifier": "classifier"},
            layers=(HeadLayer.gelu, HeadLayer.dropout),
        )
    )

    def to_hf(self, config: EncoderConfig, vocab_size: int) -> dict[str, Any]:
        return {
            **super().to_hf(config, vocab_size),
            "type_vocab_size": config.token_types,
            "relative_attention": True,
            "position_biased_input": False,
            "max_relative_positions": -1 if config.max_distance == config.max_seq_len else config.max_distance,
            "position_buckets": -1 if config.buckets is None else config.buckets,
            "pos_att_type": [theirs for theirs, own in _TERMS.items() if getattr(config, own)],
            "share_att_key": config.shared_projections,
            "norm_rel_ebd": next(theirs for theirs, own in _NORMS.items() if own == config.distance_norm),
        }

    def from_hf(self, theirs: dict[str, Any]) -> EncoderConfig:
        keys = ("max_relative_positions", "position_buckets")
        return super().from_hf(theirs | {key: None for key in keys if theirs.get(key) in (-1, 0)})

    def network(self, theirs: dict[str, Any]) -> EncoderConfig:
        width, said = theirs["hidden_size"], {key: value for key, value in theirs.items() if value is not None}
        self.expect(said, embedding_size=width, pooler_hidden_size=width)
        self.expect(said, attention_head_size=width // theirs["num_attention_heads"])
        return super().network(theirs)

    def derived(self, theirs: dict[str, Any]) -> dict[str, Any]:
        terms, norm = theirs["pos_att_type"] or [], theirs["norm_rel_ebd"]
        if isinstance(terms, str):
            terms = [term.strip() for term in terms.lower().split("|")]
        if not terms or not all(term in list(_TERMS) for term in terms):  # a file may hold lists of lists
            raise self.refusal("pos_att_type", theirs["pos_att_type"], f"{' and '.join(_TERMS)} are, or either")
        if norm not in _NORMS:
            raise self.refusal("norm_rel_ebd", norm, f"{' and '.join(_NORMS)} are")
        return {
            "token_types": theirs["type_vocab_size"],
            "max_distance": theirs["max_relative_positions"] or theirs["max_position_embeddings"],
            "buckets": theirs["position_buckets"],
            **{own: their in terms for their, own in _TERMS.items()},
            "shared_projections": theirs["share_att_key"],
            "distance_norm": _NORMS[norm],
        }

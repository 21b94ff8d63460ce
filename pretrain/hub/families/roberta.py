"""RoBERTa in Hugging Face's layout: `RobertaForMaskedLM`.

Holds what differs from BERT: names of the head, and positions that are counted from the padding token's id.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from pretrain.hub.families.bert import Bert, body_names
from pretrain.hub.task_heads import HeadLayer, Heads, TaskHead
from pretrain.models.encoder import EncoderConfig
from pretrain.models.layers import Activation


class Roberta(Bert):
    """BERT with positions counted from the padding token's id, and another head."""

    model_type = "roberta"
    architecture = "RobertaForMaskedLM"
    pretraining = ""

    tensors = replace(
        Bert.tensors,
        names={
            **body_names("roberta"),
            "transform.dense": "lm_head.dense",
            "transform.norm": "lm_head.layer_norm",
            "head": "lm_head",
        },
        prefix="roberta.",
        tied={
            "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
            "lm_head.decoder.bias": "lm_head.bias",
        },
        beside={},
        unused=("roberta.pooler.",),  # which its own classifiers do not use
    )
    settings = replace(
        Bert.settings,
        defaults=Bert.settings.defaults | {"vocab_size": 50265, "pad_token_id": 1},
        read={"pad_token_id": int},
        activations={Activation.gelu: "gelu"},  # the head's is always this one
        translated=("position_offset",),
    )

    heads = Heads(
        sequence=TaskHead(
            names={"tanh.dense": "classifier.dense", "classifier": "classifier.out_proj"},
            layers=(HeadLayer.dropout, HeadLayer.tanh, HeadLayer.dropout),
        )
    )

    def differences(self, config: EncoderConfig) -> Iterator[str]:
        yield from super().differences(config)
        if not config.position_offset:
            yield self.lacks("position_offset", 0, "whose positions begin after the id of the padding token")

    def to_hf(self, config: EncoderConfig, vocab_size: int) -> dict[str, Any]:
        return {
            **super().to_hf(config, vocab_size),
            "max_position_embeddings": config.max_seq_len + config.position_offset,
            "pad_token_id": config.position_offset - 1,
        }

    def network(self, theirs: dict[str, Any]) -> EncoderConfig:
        offset = theirs["pad_token_id"] + 1
        same = super().network(theirs)
        return replace(same, position_offset=offset, max_seq_len=same.max_seq_len - offset)

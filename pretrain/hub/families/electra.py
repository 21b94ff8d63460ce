"""ELECTRA (Clark et al. 2020) in Hugging Face's layout: the generator is `ElectraForMaskedLM`, the discriminator, with
the detector of replaced tokens, `ElectraForPreTraining`.

Holds what differs from BERT: embeddings of a width of their own, names of the heads, and a classifier without a pooler.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pretrain.hub.families.bert import Bert, body_names
from pretrain.hub.task_heads import HeadLayer, Heads, TaskHead
from pretrain.models.encoder import EncoderConfig
from pretrain.models.layers import Activation


class Electra(Bert):
    """BERT whose embeddings may be narrower or wider than its blocks."""

    model_type = "electra"
    architecture = "ElectraForMaskedLM"
    pretraining = "ElectraForPreTraining"
    objective = "replaced_tokens"

    tensors = replace(
        Bert.tensors,
        names={
            **body_names("electra"),
            "embedding_projection": "electra.embeddings_project",
            "transform.dense": "generator_predictions.dense",
            "transform.norm": "generator_predictions.LayerNorm",
            "head": "generator_lm_head",
        },
        prefix="electra.",
        tied={"generator_lm_head.weight": "electra.embeddings.word_embeddings.weight"},
        beside={
            "detector.dense": "discriminator_predictions.dense",
            "detector.classifier": "discriminator_predictions.dense_prediction",
        },
    )
    settings = replace(
        Bert.settings,
        defaults=Bert.settings.defaults
        | {
            "embedding_size": 128,
            "hidden_size": 256,
            "num_attention_heads": 4,
            "intermediate_size": 1024,
        },
        read={"embedding_size": int},
        activations={Activation.gelu: "gelu"},  # those of the heads are always this one
        translated=("embedding_width",),
        silent=("classifier_dropout", "summary_"),
    )

    heads = Heads(
        sequence=TaskHead(
            names={"gelu.dense": "classifier.dense", "classifier": "classifier.out_proj"},
            layers=(HeadLayer.dropout, HeadLayer.gelu, HeadLayer.dropout),
        )
    )

    def to_hf(self, config: EncoderConfig, vocab_size: int) -> dict[str, Any]:
        return {**super().to_hf(config, vocab_size), "embedding_size": config.embedded_width}

    def derived(self, theirs: dict[str, Any]) -> dict[str, Any]:
        width = theirs["embedding_size"]
        return {"embedding_width": None if width == theirs["hidden_size"] else width}

"""BERT in Hugging Face's layout: `BertForMaskedLM`, or `BertForPreTraining` with the classifier of pairs.

Holds names and configuration.
"""

from __future__ import annotations

from collections.abc import Iterator

from pretrain.hub.config_json import SIZES, Settings
from pretrain.hub.family import Family, Tensors
from pretrain.hub.task_heads import HeadLayer, Heads, TaskHead
from pretrain.models.encoder import EncoderConfig
from pretrain.models.layers import Activation


def body_names(prefix: str) -> dict[str, str | tuple[str, ...]]:
    """Return the names of everything below the head."""
    embeddings, layer = f"{prefix}.embeddings", f"{prefix}.encoder.layer.#"
    return {
        "embedding": f"{embeddings}.word_embeddings",
        "position_embedding": f"{embeddings}.position_embeddings",
        "type_embedding": f"{embeddings}.token_type_embeddings",
        "embedding_norm": f"{embeddings}.LayerNorm",
        "blocks.#.attention.qkv": tuple(f"{layer}.attention.self.{name}" for name in ("query", "key", "value")),
        "blocks.#.attention.out": f"{layer}.attention.output.dense",
        "blocks.#.attention_norm": f"{layer}.attention.output.LayerNorm",
        "blocks.#.mlp.up": f"{layer}.intermediate.dense",
        "blocks.#.mlp.down": f"{layer}.output.dense",
        "blocks.#.mlp_norm": f"{layer}.output.LayerNorm",
    }


class Bert(Family):
    """Post-norm encoder with learned positions and token types."""

    config_type = EncoderConfig
    model_type = "bert"
    architecture = "BertForMaskedLM"
    pretraining = "BertForPreTraining"

    tensors = Tensors(
        names={
            **body_names("bert"),
            "transform.dense": "cls.predictions.transform.dense",
            "transform.norm": "cls.predictions.transform.LayerNorm",
            "head": "cls.predictions",
        },
        prefix="bert.",
        derived=(".position_ids", ".token_type_ids"),
        tied={
            "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
            "cls.predictions.decoder.bias": "cls.predictions.bias",
        },
        beside={"pooler.dense": "bert.pooler.dense", "sentence_classifier": "cls.seq_relationship"},
    )
    # Embeddings are tied: untied, transformers has two biases on the logits and reads one.
    settings = Settings(
        same=SIZES | {"type_vocab_size": "token_types", "layer_norm_eps": "norm_eps"},
        defaults={
            "vocab_size": 30522,
            "max_position_embeddings": 512,
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-12,
            "type_vocab_size": 2,
        },
        training={"hidden_dropout_prob": "dropout", "attention_probs_dropout_prob": "attention_dropout"},
        activation_key="hidden_act",
        activations={Activation.gelu: "gelu", Activation.gelu_tanh: "gelu_new"},
        computes={
            "tie_word_embeddings": True,
            "position_embedding_type": "absolute",
            "is_decoder": False,
            "add_cross_attention": False,
            "pruned_heads": {},
        },
        silent=("classifier_dropout", "pooler_", "directionality"),
    )

    heads = Heads(
        sequence=TaskHead(
            names={"pooler.dense": "bert.pooler.dense", "classifier": "classifier"},
            layers=(HeadLayer.pooler, HeadLayer.dropout),
        )
    )

    def differences(self, config: EncoderConfig) -> Iterator[str]:
        yield from super().differences(config)
        if not config.token_types:
            yield self.lacks("token_types", 0, "which has 1 or more")

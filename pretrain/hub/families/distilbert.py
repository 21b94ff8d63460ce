"""DistilBERT in Hugging Face's layout: `DistilBertForMaskedLM`.

Holds names and configuration: BERT without token types, under names of its own.
"""

from __future__ import annotations

from dataclasses import replace

from pretrain.hub.config_json import Settings
from pretrain.hub.family import Family, Tensors
from pretrain.hub.task_heads import SPANS, HeadLayer, Heads, TaskHead
from pretrain.models.encoder import EncoderConfig
from pretrain.models.layers import Activation


class DistilBert(Family):
    """BERT without token types."""

    config_type = EncoderConfig
    model_type = "distilbert"
    architecture = "DistilBertForMaskedLM"

    tensors = Tensors(
        names={
            "embedding": "distilbert.embeddings.word_embeddings",
            "position_embedding": "distilbert.embeddings.position_embeddings",
            "embedding_norm": "distilbert.embeddings.LayerNorm",
            "blocks.#.attention.qkv": tuple(f"distilbert.transformer.layer.#.attention.{name}_lin" for name in "qkv"),
            "blocks.#.attention.out": "distilbert.transformer.layer.#.attention.out_lin",
            "blocks.#.attention_norm": "distilbert.transformer.layer.#.sa_layer_norm",
            "blocks.#.mlp.up": "distilbert.transformer.layer.#.ffn.lin1",
            "blocks.#.mlp.down": "distilbert.transformer.layer.#.ffn.lin2",
            "blocks.#.mlp_norm": "distilbert.transformer.layer.#.output_layer_norm",
            "transform.dense": "vocab_transform",
            "transform.norm": "vocab_layer_norm",
            "head": "vocab_projector",
        },
        prefix="distilbert.",
        derived=(".position_ids",),
        tied={"vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"},
    )
    settings = Settings(
        same={
            "max_position_embeddings": "max_seq_len",
            "dim": "width",
            "n_layers": "layers",
            "n_heads": "heads",
            "hidden_dim": "mlp_width",
            "tie_word_embeddings": "tie_embeddings",
        },
        defaults={
            "vocab_size": 30522,
            "max_position_embeddings": 512,
            "dim": 768,
            "n_layers": 6,
            "n_heads": 12,
            "hidden_dim": 3072,
            "activation": "gelu",
            "tie_word_embeddings": True,
        },
        training={"dropout": "dropout", "attention_dropout": "attention_dropout"},
        activation_key="activation",
        activations={Activation.gelu: "gelu", Activation.gelu_tanh: "gelu_new"},
        fixed={"token_types": 0},
        computes={"sinusoidal_pos_embds": False, "pruned_heads": {}},  # sinusoidal ones are not trained, ours are
        silent=("qa_dropout", "seq_classif_dropout", "tie_weights_"),
        other_names={"hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads"},
    )
    heads = Heads(
        sequence=TaskHead(
            names={"relu.dense": "pre_classifier", "classifier": "classifier"},
            layers=(HeadLayer.relu, HeadLayer.dropout),
        ),
        span=replace(SPANS, layers=(HeadLayer.dropout,)),
    )

"""Heads of tasks as the families of Hugging Face have them: the layers after the last hidden states, and their names.

Holds tables and layers; losses are the tasks', the module that joins a model and a head is in `objective`.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from enum import StrEnum

from torch import Tensor, nn

from pretrain.models.decoder import DecoderConfig
from pretrain.models.encoder import EncoderConfig, Transform
from pretrain.objectives.pooler import Pooler

Config = DecoderConfig | EncoderConfig


class Kind(StrEnum):
    """What a head answers for."""

    sequence = "sequence"  # each sequence, from what stands for it
    span = "span"  # each token: whether an answer begins there, and whether one ends there
    token = "token"  # each token


class Pooling(StrEnum):
    """What stands for a sequence."""

    first = "first"  # the hidden state of its first token
    last = "last"  # of its last token


class Layer(StrEnum):
    """What may stand before the classifier."""

    pooler = "pooler"  # BERT's, which pretraining may have trained
    tanh = "tanh"  # a layer as wide as the model, and its tanh
    relu = "relu"  # the same with relu
    transform = "transform"  # what stands before the vocabulary projection, trained with it
    dropout = "dropout"


@dataclass(frozen=True, kw_only=True)
class HeadStyle:
    """One kind of head of one family."""

    architecture: str  # the class in transformers
    names: dict[str, str]  # modules below our head, and theirs
    layers: tuple[Layer, ...] = ()  # before the classifier
    bias: bool = True  # whether the classifier has one
    pooling: Pooling = Pooling.first  # of sequences
    prefix: str | None = None  # begins the names of the body; None: as in the family's own checkpoints


def _bert(name: str, spans: tuple[Layer, ...] = ()) -> dict[Kind, HeadStyle]:
    """Return the heads that answer for tokens, which BERT, RoBERTa and DistilBERT have alike."""
    return {
        Kind.span: HeadStyle(
            architecture=f"{name}ForQuestionAnswering", names={"classifier": "qa_outputs"}, layers=spans
        ),
        Kind.token: HeadStyle(
            architecture=f"{name}ForTokenClassification", names={"classifier": "classifier"}, layers=(Layer.dropout,)
        ),
    }


def _decoder(name: str, token: str, prefix: str | None = None) -> dict[Kind, HeadStyle]:
    """Return the heads of decoders: a text is known by its last token, which has seen all of it."""
    return {
        Kind.sequence: HeadStyle(
            architecture=f"{name}ForSequenceClassification",
            names={"classifier": "score"},
            bias=False,
            pooling=Pooling.last,
        ),
        Kind.span: HeadStyle(
            architecture=f"{name}ForQuestionAnswering", names={"classifier": "qa_outputs"}, prefix=prefix
        ),
        Kind.token: HeadStyle(
            architecture=f"{name}ForTokenClassification", names={"classifier": token}, layers=(Layer.dropout,)
        ),
    }


def _modernbert() -> dict[Kind, HeadStyle]:
    """Return ModernBERT's heads, all of which begin with the transform that masked-language modelling trained."""
    names = {"transform.dense": "head.dense", "transform.norm": "head.norm", "classifier": "classifier"}
    classes = {
        Kind.sequence: "SequenceClassification",
        Kind.span: "QuestionAnswering",
        Kind.token: "TokenClassification",
    }
    return {
        kind: HeadStyle(architecture=f"ModernBertFor{name}", names=names, layers=(Layer.transform, Layer.dropout))
        for kind, name in classes.items()
    }


HEADS: dict[str, dict[Kind, HeadStyle]] = {
    "bert": {
        Kind.sequence: HeadStyle(
            architecture="BertForSequenceClassification",
            names={"pooler.dense": "bert.pooler.dense", "classifier": "classifier"},
            layers=(Layer.pooler, Layer.dropout),
        ),
        **_bert("Bert"),
    },
    "roberta": {
        Kind.sequence: HeadStyle(
            architecture="RobertaForSequenceClassification",
            names={"tanh.dense": "classifier.dense", "classifier": "classifier.out_proj"},
            layers=(Layer.dropout, Layer.tanh, Layer.dropout),
        ),
        **_bert("Roberta"),
    },
    "distilbert": {
        Kind.sequence: HeadStyle(
            architecture="DistilBertForSequenceClassification",
            names={"relu.dense": "pre_classifier", "classifier": "classifier"},
            layers=(Layer.relu, Layer.dropout),
        ),
        **_bert("DistilBert", spans=(Layer.dropout,)),
    },
    "modernbert": _modernbert(),
    "gpt2": _decoder("GPT2", token="classifier"),
    "llama": _decoder("Llama", token="score", prefix="transformer."),
    "mistral": _decoder("Mistral", token="score"),
}
"""By Hugging Face's `model_type`."""


def build_head(style: HeadStyle, config: Config, *, outputs: int, dropout: float) -> nn.Sequential:
    """Return the layers that map hidden states (M, D) to logits (M, outputs); on the meta device, as a model is."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for place, layer in enumerate(style.layers):
        name = f"dropout{place}" if layer is Layer.dropout else layer.value
        layers[name] = _layer(layer, config, dropout)
    layers["classifier"] = nn.Linear(config.width, outputs, bias=style.bias)
    return nn.Sequential(layers)


def _layer(layer: Layer, config: Config, dropout: float) -> nn.Module:
    match layer:
        case Layer.pooler:
            return Pooler(config.width)
        case Layer.tanh | Layer.relu:
            activation = nn.Tanh() if layer is Layer.tanh else nn.ReLU()
            return nn.Sequential(OrderedDict(dense=nn.Linear(config.width, config.width), activation=activation))
        case Layer.transform:
            assert isinstance(config, EncoderConfig), "decoders have none"
            return Transform(config)
        case Layer.dropout:
            return nn.Dropout(dropout)


def pooled(hidden: Tensor, offsets: Tensor, pooling: Pooling) -> Tensor:
    """Return what stands for each sequence (S, D) of hidden states (N, D), which begin at `offsets` (S+1,)."""
    match pooling:
        case Pooling.first:
            return hidden.index_select(0, offsets[:-1])
        case Pooling.last:
            return hidden.index_select(0, offsets[1:] - 1)

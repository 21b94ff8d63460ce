"""Heads of tasks: the layers after a model's last hidden states, and where their tensors lie in Hugging Face's layout.

Holds layers and no table: which head a family has is in its own file in `pretrain/hub`, losses are in `losses`, and
`base` joins a model and a head.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from pretrain.hub.family import Config, HFTensor, family_for
from pretrain.hub.heads import HeadKind, HeadLayer, Pooling, TaskHead
from pretrain.models.encoder import EncoderConfig, Pooler, Transform

HEAD = "head."  # begins the names of a head's tensors in `FineTuned`


def build_head(head: TaskHead, config: Config, *, outputs: int, dropout: float) -> nn.Sequential:
    """Return the layers that map hidden states (M, D) to logits (M, outputs); on the meta device, as a model is."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for place, layer in enumerate(head.layers):
        name = f"dropout{place}" if layer is HeadLayer.dropout else layer.value
        layers[name] = _layer(layer, config, dropout)
    layers["classifier"] = nn.Linear(config.width, outputs, bias=head.bias)
    return nn.Sequential(layers)


def _layer(layer: HeadLayer, config: Config, dropout: float) -> nn.Module:
    match layer:
        case HeadLayer.pooler:
            return Pooler(config.width)
        case HeadLayer.tanh | HeadLayer.relu | HeadLayer.gelu:
            activation = {HeadLayer.tanh: nn.Tanh, HeadLayer.relu: nn.ReLU, HeadLayer.gelu: nn.GELU}[layer]()
            return nn.Sequential(OrderedDict(dense=nn.Linear(config.width, config.width), activation=activation))
        case HeadLayer.transform:
            assert isinstance(config, EncoderConfig), "decoders have none"
            return Transform(config)
        case HeadLayer.dropout:
            return nn.Dropout(dropout)


def pooled(hidden: Tensor, offsets: Tensor, pooling: Pooling) -> Tensor:
    """Return what represents each sequence, (S, D), of hidden states (N, D) whose sequences begin at `offsets`."""
    return hidden.index_select(0, offsets[:-1] if pooling is Pooling.first else offsets[1:] - 1)


def hf_tensors(
    config: Config, kind: HeadKind, vocab_size: int, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[HFTensor]:
    """Yield every tensor of a fine-tuned model, of such `shapes`, with its name in the family's class for the task.

    Raises `ConfigError` for a model of no family, and of one without such a class.
    """
    family = family_for(config)
    head, prefix = family.head(kind), family.tensors.prefix
    for tensor in family.model_tensors(config, vocab_size, "model."):
        if tensor.theirs.startswith(prefix):  # else it belongs to the head that predicts tokens, which is left out
            yield tensor._replace(theirs=(head.prefix or prefix) + tensor.theirs.removeprefix(prefix))
    for name, shape in shapes.items():
        if name.startswith(HEAD):
            module, _, leaf = name.removeprefix(HEAD).rpartition(".")
            yield HFTensor(f"{head.names[module]}.{leaf}", name, tuple(shape))

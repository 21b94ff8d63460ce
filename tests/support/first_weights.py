"""A module for fine-tuning, filled with what it begins with, and what was said of that."""

import torch
from toys import ALONE

from finetune.init_from import weights_from
from finetune.model.base import FineTuned
from finetune.model.losses import CrossEntropy
from pretrain.checkpoint.base import WEIGHT
from pretrain.hub.family import head_for
from pretrain.hub.heads import HeadKind
from pretrain.init_from import InitialWeights
from pretrain.models.attention.sdpa import sdpa
from pretrain.trained.source import open_source

SEED = 5  # of fine-tuning; the source's is 1


def begin(place, kind=HeadKind.sequence, scratch=False, names=("a", "b", "c")):
    """Return the module filled with what it begins with, and its initial weights."""
    source = open_source(str(place))
    style = head_for(source.network, kind)
    with torch.device("meta"):
        model = source.network.build(vocab_size=source.vocab_size, attend=sdpa, head=False)
        module = FineTuned(model, source.network, style, kind, CrossEntropy(), outputs=len(names), dropout=0.1)
    initial = InitialWeights(module, SEED)
    read = weights_from(source, initial, ALONE, names=[*names], kind=kind, scratch=scratch)
    for name, parameter in module.to_empty(device="cpu").named_parameters():
        assert read.kinds(name).keys() == {WEIGHT}, "no moments"
        parameter.data.copy_(read(name, WEIGHT, 0, parameter.numel()).reshape(parameter.shape))
    return module.eval(), initial


def said_to_be_new(caplog):
    lines = [record.getMessage() for record in caplog.records if record.getMessage().endswith("get initial values")]
    return {name for line in lines for name in line.removesuffix(" get initial values").split(", ")}

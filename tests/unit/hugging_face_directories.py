"""Hugging Face directories of small models, written by us."""

import json

import torch
from small_models import VOCAB_SIZE

from pretrain.huggingface import write_weights
from pretrain.models.hub import family_for
from pretrain.strategy.base import WEIGHT


class InMemory:
    """A reader of a module's own tensors."""

    def __init__(self, module):
        self.tensors = {f"model.{name}": parameter.detach() for name, parameter in module.named_parameters()}

    def kinds(self, name):
        return {WEIGHT: self.tensors[name].shape}

    def __call__(self, name, kind, start, numel):
        return self.tensors[name].reshape(-1)[start : start + numel]


def write(directory, model, max_bytes=10**9, dtype=torch.float32):
    directory.mkdir()
    family = family_for(model.config)
    (directory / "config.json").write_text(json.dumps(family.theirs(model.config, VOCAB_SIZE)))
    parts = list(family.parts(model.config, VOCAB_SIZE, "model."))
    write_weights(directory, parts, InMemory(model), dtype=dtype, max_bytes=max_bytes)
    return directory

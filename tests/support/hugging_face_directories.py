"""Hugging Face directories of small models, written by us or by transformers."""

import json

import torch
from small_models import VOCAB_SIZE
from tokenizers import processors
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    PreTrainedTokenizerFast,
)
from vocabularies import byte_level, word_piece

from pretrain.checkpoint.base import WEIGHT
from pretrain.hub.family import family_for
from pretrain.hub.weights import write_weights
from pretrain.models.base import ModelKind

AUTO_CLASSES = {
    ModelKind.causal: AutoModelForCausalLM,
    ModelKind.bidirectional: AutoModelForMaskedLM,
    ModelKind.encoder_decoder: AutoModelForSeq2SeqLM,
}


class InMemory:
    """A reader of a module's own tensors."""

    def __init__(self, module):
        self.tensors = {f"model.{name}": parameter.detach() for name, parameter in module.named_parameters()}

    def kinds(self, name):
        return {WEIGHT: self.tensors[name].shape}

    def __call__(self, name, kind, start, numel):
        return self.tensors[name].reshape(-1)[start : start + numel]


def in_memory(theirs, part):
    """Return a parameter of a model of transformers by its name in files."""
    return theirs.get_parameter("lm_head.weight" if part.theirs == "embed_out.weight" else part.theirs)


def rows_of_ours(part, tensor):
    """Return the rows of ours that a tensor of theirs holds."""
    if part.heads > 1:
        return tensor.unflatten(0, (part.heads, 3, -1)).transpose(0, 1).flatten(0, 2)
    return tensor.T if part.transposed else tensor


def write(directory, model, max_bytes=10**9, dtype=torch.float32):
    directory.mkdir()
    family = family_for(model.config)
    (directory / "config.json").write_text(json.dumps(family.to_hf(model.config, VOCAB_SIZE)))
    parts = list(family.model_tensors(model.config, VOCAB_SIZE, "model."))
    write_weights(directory, parts, InMemory(model), dtype=dtype, max_bytes=max_bytes)
    return directory


def write_released(directory, config, texts):
    """Write a directory as published models have it: by transformers, with a template in the tokenizer.

    The tokenizer is one like BERT's, or like RoBERTa's and GPT-2's where the model is theirs; it comes back.
    """
    family = family_for(config)
    tokenizer = (word_piece if family.model_type in ("bert", "distilbert") else byte_level)(texts)
    if not config.kind.generates:
        ends = ("[CLS]", "[SEP]") if tokenizer.token_to_id("[CLS]") is not None else ("<s>", "</s>")
        special = [(token, tokenizer.token_to_id(token)) for token in ends]
        template = f"{ends[0]} $A {ends[1]}"
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    theirs = AutoConfig.for_model(**family.to_hf(config, tokenizer.get_vocab_size()))
    kind = AutoModelForCausalLM if config.kind.generates else AutoModelForMaskedLM
    kind.from_config(theirs).save_pretrained(directory)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(directory)
    return tokenizer

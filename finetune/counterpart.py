"""The Hugging Face counterpart of a fine-tuned model: which head its family has, and what each tensor is called there.

Holds names; files are written by `export`, and read by `pretrain.hub.weights`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from finetune.model.heads import HEADS, Config, HeadStyle, Kind
from pretrain.errors import ConfigError
from pretrain.hub import Part, family_for

HEAD = "head."  # begins the names of a head's tensors


def style_of(config: Config, kind: Kind) -> HeadStyle:
    """Return the head that a model's family has; a model of no family has BERT's, or if it is causal GPT-2's."""
    try:
        family = family_for(config).model_type
    except ConfigError:
        family = "gpt2" if config.causal else "bert"
    return HEADS[family][kind]


def parts_of(config: Config, kind: Kind, vocab_size: int, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Part]:
    """Yield every tensor of a fine-tuned model, of such `shapes`, with its name in the family's class for the task.

    Raises `ConfigError` for a model of no family.
    """
    family = family_for(config)
    style = HEADS[family.model_type][kind]
    for part in family.parts(config, vocab_size, "model."):
        if part.theirs.startswith(family.tensors.prefix):  # not what predicts tokens, which is left out
            body = part.theirs.removeprefix(family.tensors.prefix)
            yield part._replace(theirs=(style.prefix or family.tensors.prefix) + body)
    for name, shape in shapes.items():
        if name.startswith(HEAD):
            module, _, leaf = name.removeprefix(HEAD).rpartition(".")
            yield Part(f"{style.names[module]}.{leaf}", name, tuple(shape))

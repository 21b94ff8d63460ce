"""The ids that stand around the texts of a model that writes, and the prompt of each example.

Holds where texts begin and end; examples are made by the tasks, and `written` continues their prompts.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

from finetune.answering.base import Codec
from finetune.answering.languages import target_frame
from finetune.data.examples import Examples
from pretrain.data.batch import IGNORED
from pretrain.errors import ConfigError
from pretrain.models.base import ModelKind


class Frame(NamedTuple):
    """The ids that stand around texts."""

    prefix: list[int]  # before a text
    suffix: list[int]  # after a text
    start: int | None  # what an encoder-decoder's decoder reads first; None: the model is a decoder
    markup: bool = False  # whether special tokens are written in the texts, as chat templates write them
    target: tuple[list[int], list[int]] | None = None  # before and after an encoder-decoder's target; None: as a source

    @property
    def begin(self) -> list[int]:
        """The ids that begin a target: none of a decoder, which reads it right behind its source."""
        if self.start is None:
            return []
        return self.prefix if self.target is None else self.target[0]

    @property
    def end(self) -> list[int]:
        """The ids that end a target: the suffix or, without one, the token that begins the next text.

        Raises `ConfigError` for a tokenizer that has neither: a model could not learn to stop.
        """
        suffix = self.suffix if self.target is None else self.target[1]
        if not (found := suffix or self.prefix[:1]):
            rule = "the tokenizer puts no token before or after a text, so that an answer would never end"
            raise ConfigError(f"init_from: {rule}; choose a model whose tokenizer has an end-of-text token")
        return found


def frame_of(codec: Codec) -> Frame:
    """Return the ids that stand around texts of a model. Raises `ConfigError` for a codec that does not say them."""
    prefix, suffix = codec.frame
    if codec.kind is ModelKind.causal:
        return Frame(prefix, suffix, None)
    if codec.start is None:
        rule = "nothing says with which token its decoder begins (decoder_start_token_id in config.json); add it there"
        raise ConfigError(f"init_from: {rule}")
    if not suffix:
        return Frame([], prefix[:1], codec.start)
    return Frame(prefix, suffix, codec.start, target=target_frame(codec))


def prompts_of(examples: Examples, frame: Frame) -> list[list[int]]:
    """Return the ids that the decoder reads before it writes the target of each example."""
    if frame.start is not None:
        return [[frame.start]] * len(examples)
    prompts = []
    for first, end in itertools.pairwise(examples.offsets.tolist()):
        own = examples.tokens[first:end]
        if examples.targets is not None:  # the last token of the prompt is the first with a target
            own = own[: np.flatnonzero(examples.targets[first:end] != IGNORED)[0] + 1]
        prompts.append(own.tolist())
    return prompts

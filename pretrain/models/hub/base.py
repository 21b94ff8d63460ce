"""What a Hugging Face family is: where each of its tensors lies in ours, and its configuration both ways.

Holds the contract; families have files of their own, reading and writing checkpoints is not done here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from enum import Enum
from typing import Any, NamedTuple, Protocol

from pretrain.errors import ConfigError
from pretrain.models.decoder import DecoderConfig


class Part(NamedTuple):
    """One tensor of a Hugging Face checkpoint: whole rows of one of our tensors, perhaps transposed.

    Each element of ours lies in one part only, so a list of parts serves both directions.
    """

    theirs: str  # name in the Hugging Face checkpoint
    ours: str  # name in our model
    shape: tuple[int, ...]  # of these rows, as ours are
    row: int = 0  # the first of them
    transposed: bool = False  # theirs has the rows as columns

    @property
    def numel(self) -> int:
        """Elements of the tensor."""
        return math.prod(self.shape)

    @property
    def start(self) -> int:
        """First element, counted in our flattened tensor."""
        return self.row * math.prod(self.shape[1:])

    @property
    def their_shape(self) -> tuple[int, ...]:
        """Shape in the Hugging Face checkpoint."""
        return self.shape[::-1] if self.transposed else self.shape


class Family(Protocol):
    """A Hugging Face architecture that some of our decoders are."""

    model_type: str  # in config.json
    architecture: str  # the class in transformers
    prefix: str  # of the body's names; checkpoints of the body alone lack it
    derived: tuple[str, ...]  # endings of stored tensors that follow from the configuration: masks, frequencies

    def check(self, config: DecoderConfig) -> None:
        """Raise `ConfigError` that names the first setting which this architecture does not have."""
        ...

    def parts(self, config: DecoderConfig, vocab_size: int) -> Iterator[Part]:
        """Yield every tensor, in the order of the model; a tied head is none."""
        ...

    def theirs(self, config: DecoderConfig, vocab_size: int) -> dict[str, Any]:
        """Return what `config.json` says of the network, special tokens aside."""
        ...

    def ours(self, theirs: dict[str, Any]) -> DecoderConfig:
        """Return our configuration of the same network. Raises `ConfigError` for a setting that we do not have."""
        ...


def require(config: DecoderConfig, architecture: str, **wanted: Any) -> None:
    """Raise `ConfigError` for the first setting of a decoder that is not what an architecture has."""
    for key, value in wanted.items():
        found = getattr(config, key)
        if found != value:
            raise ConfigError(
                f"model.{key}={_shown(found)}: has no counterpart in {architecture}, which knows {_shown(value)} only; "
                "this model cannot be exported"
            )


def expect(theirs: dict[str, Any], **wanted: Any) -> None:
    """Raise `ConfigError` for the first setting of a `config.json` that is there and not what our decoder has."""
    for key, value in wanted.items():
        if theirs.get(key, value) != value:
            raise ConfigError(f"config.json: {key}={theirs[key]} has no counterpart in model=decoder ({value} has)")


def _shown(value: Any) -> str:
    """Return a setting as it is written in YAML."""
    return json.dumps(value.value if isinstance(value, Enum) else value).strip('"')

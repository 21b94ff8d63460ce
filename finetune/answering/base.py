"""How a task's model answers: the protocol, and the values that pass between ways of answering, tasks and commands.

The ways themselves are in `by_head` and `by_writing`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

from tokenizers import Tokenizer
from torch import nn

from finetune.data.examples import Examples
from pretrain.checkpoint.load import Shapes
from pretrain.distributed.world import World
from pretrain.hub.family import HFTensor
from pretrain.hub.heads import HeadKind
from pretrain.models.base import Model, ModelKind
from pretrain.models.generation.rules import Rules
from pretrain.objectives.base import Objective
from pretrain.strategy.base import StrategyConfig


@dataclass(frozen=True)
class Encoded:
    """A data set as a task encoded it: E sequences of R records (a long text may be several, one after another)."""

    examples: Examples
    records: Sequence[Any]  # of the task's own type: texts, answers, where they came from


@dataclass(frozen=True, kw_only=True)
class Codec:
    """How texts become the ids that a model has learnt to read and to write, and back."""

    tokenizer: Tokenizer  # its template adds the special tokens around texts and pairs; it decodes all ids
    kind: ModelKind  # of the model
    frame: tuple[list[int], list[int]]  # ids before and after a document
    start: int | None = None  # the id that the decoder of an encoder-decoder begins with; None: nothing says which
    chat_template: dict[str, Any] | None = None  # makes text of messages; None: none is needed
    target_tokenizer: Tokenizer | None = None  # cuts targets into tokens, of the same ids; None: `tokenizer` does
    rules: Rules | None = None  # that the texts of an encoder-decoder keep to; None: nothing says any


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A module that answers, with all that is needed to run it."""

    module: nn.Module  # as a strategy wrapped it: to call it is a collective
    objective: Objective  # inside of it
    codec: Codec
    whole: bool  # whether this rank holds all weights, so that it can use the model inside by itself
    autocast: Callable[[], AbstractContextManager[Any]]  # the precision that the model inside computes in
    max_tokens: int  # in one pass
    world: World


class Answers(NamedTuple):
    """What a model makes of a data set."""

    encoded: Encoded  # what was answered: all of the data set, or a part
    each: list[Any]  # the answer to each of its sequences, as `TaskConfig.measure` takes it
    figures: dict[str, float]  # of the whole data set, beside what the task measures; `loss`, unless nothing has one


class Exported(NamedTuple):
    """The parts of an export that depend on the way of answering; see `Export` in `pretrain.hub.export_dir`."""

    tensors: list[HFTensor]
    tokenizer: Tokenizer
    config: dict[str, Any]
    special_tokens: dict[str, int]
    tokenizer_settings: dict[str, Any]
    generates: bool


class Answering(Protocol):
    """All that depends on how a task's model answers: by a head of the task, or by writing with its own vocabulary."""

    writes: ClassVar[bool]  # whether the model keeps its vocabulary head, the task having none

    @property
    def kind(self) -> HeadKind | None:
        """What the task's head makes predictions for; None where the task has none."""
        ...

    @property
    def longest(self) -> tuple[str, int]:
        """The settings that bound an example, as messages name them, and the tokens that one may have."""
        ...

    def check_model(self, network: Any, name: str) -> None:
        """Raise `ConfigError` for a network, that of `name`, that cannot answer so, or not at such lengths."""
        ...

    def check_strategy(self, strategy: StrategyConfig) -> None:
        """Raise `ConfigError` for a strategy under which the model cannot be measured while it trains."""
        ...

    def texts(self, source: str) -> Iterator[str]:
        """Yield the texts of a labelled data set, for a tokenizer to be trained on. Raises `ConfigError`."""
        ...

    def complete(self, codec: Codec, folder: Path) -> Codec:
        """Return the codec of a source with what the task needs of its `folder`. Raises `ConfigError`."""
        ...

    def encode(self, records: Sequence[Any], codec: Codec, names: list[str], *, labelled: bool = True) -> Encoded:
        """Encode records. Raises `ConfigError` for a codec that lacks what is needed, and what the task raises."""
        ...

    def build(
        self, model: Model, network: Any, names: list[str], *, dropout: float, train: Encoded | None
    ) -> Objective:
        """Return the module that is trained on a data set; None: it only predicts. `model` is on the meta device."""
        ...

    def answers(self, engine: Engine, encoded: Encoded, names: list[str], *, all_of_it: bool = True) -> Answers:
        """Return the answers to a data set or, unless `all_of_it` is wanted, to a part where answers take long.

        A collective. The answers do not depend on the number of ranks, bit for bit.
        """
        ...

    def exported(
        self, network: Any, codec: Codec, record: dict[str, Any], shapes: Shapes, special_tokens: dict[str, int | None]
    ) -> Exported:
        """Return what an export of the module, whose tensors have such shapes, holds; `record` is the run's run.json.

        Raises `ConfigError` for a network of no family.
        """
        ...

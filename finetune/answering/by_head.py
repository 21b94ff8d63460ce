"""Answers by a head of the task: logits of its outputs for each sequence or token.

Holds what depends on there being a head; the passes through the model are in `finetune.evaluator`, heads in
`finetune.model`, and what logits mean is the tasks'.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from tokenizers import Tokenizer

from finetune.answering.base import Answers, Codec, Encoded, Engine, Exported
from finetune.evaluator import answers
from finetune.model.base import FineTuned
from finetune.model.heads import hf_tensors
from finetune.model.losses import TaskLoss
from pretrain.checkpoint.load import Shapes
from pretrain.errors import ConfigError, check
from pretrain.hub.family import family_for, head_for
from pretrain.hub.task_heads import HeadKind
from pretrain.models.base import Model, ModelKind
from pretrain.strategy.base import StrategyConfig
from pretrain.tracking.no_value import no_value


class HeadTask(Protocol):
    """What a task's dataclass has beside what `TaskConfig` says, if its model answers by a head."""

    kind: ClassVar[HeadKind]  # whether its head answers for sequences, tokens or spans
    max_tokens: int  # of a sequence; what is longer is cut or split, as the task says

    @property
    def problem_type(self) -> str | None:
        """What `transformers` calls the problem of a head that answers for whole texts; None: it answers for parts."""
        ...

    def encode(self, records: Sequence[Any], tokenizer: Tokenizer, names: list[str]) -> Encoded:
        """Encode records with a tokenizer whose template adds the special tokens.

        Raises `DataError` for answers that are not among the names.
        """
        ...

    def loss(self, encoded: Encoded, names: list[str]) -> TaskLoss:
        """Return what training minimises; `encoded` is the training set, for weights of classes."""
        ...


@dataclass(frozen=True)
class ByHead:
    """See `Answering`: the model has a head of the task in place of its own, of one output for each name."""

    writes: ClassVar[bool] = False

    task: HeadTask

    @property
    def kind(self) -> HeadKind:
        return self.task.kind

    @property
    def longest(self) -> tuple[str, int]:
        return "task.max_tokens", self.task.max_tokens

    def check_model(self, network: Any, name: str) -> None:
        rule = f"{name} has an encoder and a decoder, which answers in words; set task=seq2seq"
        check(network.kind is not ModelKind.encoder_decoder, "task", self.task.kind.value, rule)
        rule = f"{name} sees sequences of at most {network.max_seq_len} tokens; lower it"
        check(self.task.max_tokens <= network.max_seq_len, "task.max_tokens", self.task.max_tokens, rule)

    def check_strategy(self, strategy: StrategyConfig) -> None:
        """See `Answering`: any strategy will do."""

    def texts(self, source: str) -> Iterator[str]:
        rule = "a model that answers by a head starts from a pretrained one"
        raise ConfigError(f"init_from: {rule}; pretrain the model first, and name its run")

    def complete(self, codec: Codec, folder: Path) -> Codec:
        return codec

    def encode(self, records: Sequence[Any], codec: Codec, names: list[str], *, labelled: bool = True) -> Encoded:
        return self.task.encode(records, codec.tokenizer, names)

    def build(
        self, model: Model, network: Any, names: list[str], *, dropout: float, train: Encoded | None
    ) -> FineTuned:
        kind, loss = self.task.kind, train and self.task.loss(train, names)
        return FineTuned(model, network, head_for(network, kind), kind, loss, outputs=len(names), dropout=dropout)

    def answers(self, engine: Engine, encoded: Encoded, names: list[str], *, all_of_it: bool = True) -> Answers:
        found = answers(
            engine.module,
            encoded.examples,
            kind=self.task.kind,
            outputs=len(names),
            max_tokens=engine.max_tokens,
            world=engine.world,
        )
        assert isinstance(engine.objective, FineTuned)
        if not engine.objective.has_loss:
            return Answers(encoded, found.logits, {})
        if not math.isfinite(found.loss):
            no_value("loss", why="no example has a target" if math.isnan(found.loss) else "it is too large for fp32")
        return Answers(encoded, found.logits, {"loss": found.loss})

    def exported(
        self, network: Any, codec: Codec, record: Mapping[str, Any], shapes: Shapes, special_tokens: dict[str, Any]
    ) -> Exported:
        kind, names = self.task.kind, record["names"]
        return Exported(
            tensors=list(hf_tensors(network, kind, record["vocab_size"], shapes)),
            tokenizer=codec.tokenizer,
            config={"architectures": [family_for(network).task_architecture(kind)], **self._outputs(names)},
            special_tokens=_padding(codec.tokenizer, special_tokens),
            tokenizer_settings={
                "model_max_length": self.task.max_tokens,  # cut as in training
                "split_special_tokens": True,  # "[SEP]" in a text is characters, as in training
            },
            generates=False,
        )

    def _outputs(self, names: list[str]) -> dict[str, Any]:
        """Return what `config.json` says of the head's outputs."""
        if self.task.kind is HeadKind.span:
            return {}
        numbered = dict(enumerate(names))
        problem_type = {"problem_type": self.task.problem_type} if self.task.problem_type else {}
        return {"id2label": numbered, "label2id": {name: number for number, name in numbered.items()}, **problem_type}


def _padding(tokenizer: Tokenizer, special_tokens: dict[str, int | None]) -> dict[str, int]:
    """Return a padding token where the tokenizer has none: of a decoder the token that begins texts, if there is one.

    `transformers` takes the last token that is not padding as the last of a text, so no text may end with this one.
    """
    begin = special_tokens["bos"]
    if special_tokens.get("pad") is not None or begin is None or tokenizer.encode("a").ids[-1:] == [begin]:
        return {}
    return {"pad": begin}

"""Answers that are written: the model keeps its vocabulary head, learns targets, and writes a text for each example.

Holds what depends on that; texts are written in `written`, and encoded by the task.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from finetune.answering.base import Answers, Codec, Encoded, Engine, Exported
from finetune.answering.frame import Frame, prompts_of
from finetune.answering.written import GenerationConfig, write_all
from finetune.evaluator import losses
from finetune.model.language import AdaptedDecoder, AdaptedEncoderDecoder
from pretrain.checkpoint.load import Shapes
from pretrain.data.batch import IGNORED
from pretrain.errors import ConfigError, check
from pretrain.hub.family import family_for
from pretrain.hub.special_tokens import set_template
from pretrain.models.base import EncoderDecoderModel, Model, ModelKind
from pretrain.models.layers import Positions
from pretrain.objectives.base import Objective
from pretrain.strategy.base import StrategyConfig


class WritingTask(Protocol):
    """What a task's dataclass has beside what `TaskConfig` says, if its model writes its answers."""

    max_source_tokens: int  # of what the model reads
    max_target_tokens: int  # of what it writes
    label_smoothing: float  # share of a target's probability that is spread over the vocabulary
    generate_examples: int  # records that an evaluation in training answers
    generate: GenerationConfig  # how an answer is written

    def frame(self, codec: Codec) -> Frame:
        """Return the ids that stand around the texts of examples. Raises `ConfigError` where there are none."""
        ...

    def texts(self, source: str) -> Iterator[str]:
        """Yield the texts of a data set, those that are read and those that are written."""
        ...

    def in_languages(self, codec: Codec) -> Codec:
        """Return the codec of texts in the task's languages, if the model marks texts by theirs."""
        ...

    def with_chat_template(self, codec: Codec, folder: Path) -> Codec:
        """Return the codec with the template that messages are read by, if the task reads any."""
        ...

    def encode(self, records: Sequence[Any], codec: Codec, *, labelled: bool) -> Encoded:
        """Encode records, an example each, with targets if they are `labelled`."""
        ...


@dataclass(frozen=True)
class ByWriting:
    """See `Answering`: the answer is a text, of the model's own vocabulary."""

    writes: ClassVar[bool] = True

    task: WritingTask

    @property
    def kind(self) -> None:
        return None

    @property
    def longest(self) -> tuple[str, int]:
        both = self.task.max_source_tokens + self.task.max_target_tokens
        return "task.max_source_tokens + task.max_target_tokens", both

    def check_model(self, network: Any, name: str) -> None:
        if network.kind is ModelKind.bidirectional:
            rule = "is an encoder, which writes nothing; name a decoder or an encoder-decoder"
            raise ConfigError(f"{name}: {rule}, or choose another task")
        limit = network.max_seq_len
        source, target = self.task.max_source_tokens, self.task.max_target_tokens
        if network.kind is ModelKind.causal:
            rule = f"{name} sees sequences of at most {limit} tokens, source and target together; lower one of them"
            check(source + target <= limit, *self.longest, rule)
        elif network.positions is not Positions.relative:  # distances have no end
            rule = f"{name} sees sequences of at most {limit} tokens; lower it"
            check(source <= limit, "task.max_source_tokens", source, rule)
            check(target <= limit, "task.max_target_tokens", target, rule)

    def check_strategy(self, strategy: StrategyConfig) -> None:
        beams, written = self.task.generate.beams, self.task.generate_examples
        rule = (
            "needs all weights on every rank while it trains, which this strategy does not keep; set 1, and more for "
        )
        rule += "finetune.predict, by --set; or choose strategy=ddp or zero2"
        check(beams == 1 or not written or not strategy.shards_weights, "task.generate.beams", beams, rule)

    def texts(self, source: str) -> Iterator[str]:
        yield from self.task.texts(source)

    def complete(self, codec: Codec, folder: Path) -> Codec:
        return self.task.with_chat_template(self.task.in_languages(codec), folder)

    def encode(self, records: Sequence[Any], codec: Codec, names: list[str], *, labelled: bool = True) -> Encoded:
        return self.task.encode(records, codec, labelled=labelled)

    def build(
        self, model: Model, network: Any, names: list[str], *, dropout: float, train: Encoded | None
    ) -> Objective:
        if not any(parameter.requires_grad for parameter in model.parameters()):
            rule = "nothing would learn: a model that writes has no head of the task"
            raise ConfigError(f"tuning.blocks=0: {rule}; set 1 or more, or tuning=lora")
        share = 0.5 if train is None else _target_share(train)
        if isinstance(model, EncoderDecoderModel):
            return AdaptedEncoderDecoder(model, label_smoothing=self.task.label_smoothing, target_share=share)
        return AdaptedDecoder(model, label_smoothing=self.task.label_smoothing, target_share=share)

    def answers(self, engine: Engine, encoded: Encoded, names: list[str], *, all_of_it: bool = True) -> Answers:
        examples, task = encoded.examples, self.task
        figures = {}
        if examples.targets is not None and (examples.targets != IGNORED).any():
            figures = losses(engine.module, examples, max_tokens=engine.max_tokens, world=engine.world)
        count = len(examples) if all_of_it else min(task.generate_examples, len(examples))
        chosen = np.linspace(0, len(examples) - 1, count).round().astype(np.int64)  # from all over the data set
        part = Encoded(examples.part(chosen), [encoded.records[one] for one in chosen])
        frame = task.frame(engine.codec)
        [end] = frame.end[-1:]
        written = write_all(
            engine,
            part.examples,
            prompts_of(part.examples, frame),
            search=task.generate,
            max_tokens=task.max_target_tokens,
            end=end,
        )
        return Answers(part, [engine.codec.tokenizer.decode(ids) for ids in written], figures)

    def exported(
        self, network: Any, codec: Codec, record: Mapping[str, Any], shapes: Shapes, special_tokens: dict[str, Any]
    ) -> Exported:
        prefix, suffix = codec.frame
        if network.kind is ModelKind.causal:  # what ends a text would end a prompt before it is answered
            suffix = []
        set_template(codec.tokenizer, (prefix, suffix), 0)
        return Exported(
            tensors=list(family_for(network).model_tensors(network, record["vocab_size"], "model.")),
            tokenizer=codec.tokenizer,
            config={},
            special_tokens={} if codec.chat_template is None else {"eos": self.task.frame(codec).end[-1]},
            tokenizer_settings=_chat_settings(codec),
            generates=True,
        )


def _chat_settings(codec: Codec) -> dict[str, Any]:
    """Return what tokenizer_config.json says of messages: their template, and the special tokens that it may name."""
    if codec.chat_template is None:
        return {}
    tokens = {
        role: token
        for role, token in codec.chat_template["tokens"].items()
        if codec.tokenizer.token_to_id(token) is not None
    }
    return {"chat_template": codec.chat_template["text"], **tokens}


def _target_share(encoded: Encoded) -> float:
    """Return the share of an example's tokens that the decoder's head, or of an encoder-decoder its decoder, sees."""
    examples = encoded.examples
    assert examples.targets is not None
    return float((examples.targets != IGNORED).sum() / examples.lengths.sum())

"""What objectives of encoder-decoders have in common: predict a target, token after token, from all of a source.

Holds the module and the settings of its loss. What source and target are made of is in the objectives' own files; the
loss itself is in `cross_entropy`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from pretrain.data.batch import Batch, Inputs, TokenizerParts, Vocabulary
from pretrain.errors import ConfigError, check
from pretrain.models.base import EncoderDecoderModel, Layout, Model, ModelKind
from pretrain.objectives.base import Loss, Objective, TokenLossConfig, of_zeros
from pretrain.objectives.cross_entropy import linear_cross_entropy


@dataclass(kw_only=True)
class SequenceToSequenceConfig(TokenLossConfig):
    """The settings of the loss on targets, and what a tokenizer must have for them."""

    kind = ModelKind.encoder_decoder
    wants_special_tokens = True
    rewrites_documents = True

    start: str | None = None  # token that a decoder sees first; null: that of padding, else one around documents
    label_smoothing: float = 0.0  # share of a target's probability that is spread over the vocabulary; 0.1 is usual
    z_loss: float = 0.0  # weight of the squared log-normaliser, 1e-4 in T5; 0 is off

    def __post_init__(self) -> None:
        super().__post_init__()
        smoothing = self.label_smoothing
        check(0 <= smoothing < 1, "objective.label_smoothing", smoothing, "must lie in [0, 1); 0 is off")
        check(0 <= self.z_loss < math.inf, "objective.z_loss", self.z_loss, "not negative, and finite; 0 is off")

    def check_tokenizer(self, tokenizer: TokenizerParts, seq_len: int) -> None:
        """Raise `ConfigError` for a tokenizer that does not mark the end of a text, or that lacks the start token."""
        if not tokenizer.suffix:
            raise ConfigError(
                "tokenizer.suffix: this tokenizer puts no token after a document, and that is how a decoder learns "
                "where to end; name one, such as </s>"
            )
        rule = "not a token of this tokenizer; name one, or null"
        check(self.start is None or self.start in tokenizer.tokens, "objective.start", self.start, rule)

    def decoder_start(self, vocabulary: Callable[[], Vocabulary]) -> int:
        """Return the id that a decoder sees first."""
        known = vocabulary()
        found = known.start if self.start is None else known.ids[self.start]
        assert found is not None, "a tokenizer that was checked has a token after documents"
        return found

    def sides(self, seq_len: float) -> tuple[float, float]:
        """Return roughly how many tokens of source and target a sequence of `seq_len` tokens becomes, for FLOPs."""
        return seq_len / 2, seq_len / 2

    def longest_sides(self, sequences: int, seq_len: int) -> tuple[float, float]:
        """Return how many tokens of source and target so many sequences become at most, in tokens a sequence."""
        return self.sides(seq_len)

    def densest(self, sequences: int, seq_len: int) -> Inputs:
        """Return the largest inputs, see `ObjectiveConfig`: every token of the target is one."""
        source, target = (min(math.ceil(side), seq_len) for side in self.longest_sides(sequences, seq_len))
        return of_zeros(sequences, target, targets=target, source=source)

    def build(self, model: Model) -> SequenceToSequence:
        """Return the module that is trained."""
        assert isinstance(model, EncoderDecoderModel), "a model of that kind is an EncoderDecoderModel"
        return SequenceToSequence(self, model)


class SequenceToSequence(Objective):
    """An encoder-decoder and the loss of its predictions of targets."""

    def __init__(self, config: SequenceToSequenceConfig, model: EncoderDecoderModel) -> None:
        super().__init__()
        self.config = config
        self.model = model

    def forward(self, batch: Batch) -> Loss:
        """Return the sums over the batch's targets; the head runs only on rows that have one."""
        model = self.model
        assert isinstance(model, EncoderDecoderModel)
        assert batch.source is not None, "an encoder-decoder needs a source"
        layout = Layout.of(batch.offsets, batch.max_len, batch.lengths)
        hidden = model(batch.tokens, batch.positions, layout, batch.source)
        return Loss(
            *linear_cross_entropy(
                hidden,
                model.head_weight(),
                batch.targets,
                num_targets=batch.num_targets,
                bias=model.head_bias(),
                z_loss=self.config.z_loss,
                label_smoothing=self.config.label_smoothing,
                chunk_tokens=self.config.chunk_tokens,
                arithmetic=self.chunk_loss,
            )
        )

    def flops_per_token(self, seq_len: float) -> float:
        """Return the operations of a token of either side of what becomes of sequences of that length."""
        model = self.model
        assert isinstance(model, EncoderDecoderModel)
        source, target = self.config.sides(seq_len)
        return model.flops_per_token(source + target, target_share=target / (source + target))

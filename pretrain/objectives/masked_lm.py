"""Masked language modelling (Devlin et al. 2019): predict masked tokens from both sides, and perhaps classify pairs.

Holds the objective and its dataclass. Which tokens are masked is in `masking`, how pairs are made in `sentence_pairs`,
the loss itself in `cross_entropy`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.data.batch import IGNORED, Batch, Examples, Inputs, Slots, TokenizerParts, Vocabulary
from pretrain.errors import ConfigError, check
from pretrain.models.base import EncoderModel, Layout, Model, ModelKind
from pretrain.models.encoder import Pooler
from pretrain.models.init import Initial
from pretrain.objectives.base import Loss, Objective, TokenLossConfig, at_most, of_zeros
from pretrain.objectives.cross_entropy import linear_cross_entropy, rows_with_targets
from pretrain.objectives.masking import Masking, MaskingConfig
from pretrain.objectives.sentence_pairs import Pairing, Sentences
from pretrain.registry import register

INIT_STD = 0.02  # of the classifier's matrices, cut at two deviations: as in BERT


@register("objective", "masked_lm")
@dataclass(kw_only=True)
class MaskedLMConfig(TokenLossConfig):
    """`objective=masked_lm`: predict masked tokens; the defaults are RoBERTa's, `sentences=nsp` makes them BERT's.

    The loss of a step is one sum, divided by the masked tokens of the global batch. A pair weighs `sentence_weight`
    times the number of masked tokens expected in it. So with 1 the two losses weigh the same, as in BERT, however long
    documents are and however a step is divided; the mean over pairs is weighted by their lengths. Metrics show the loss
    of masked tokens alone; evaluations measure the pairs beside it.
    """

    kind = ModelKind.bidirectional
    wants_special_tokens = True

    masking: MaskingConfig = field(default_factory=MaskingConfig)
    sentences: Sentences = Sentences.none  # none, nsp (next sentence) or sop (sentence order), by the first token
    sentence_weight: float = 1.0  # of a pair against the masked tokens that are expected in it

    def __post_init__(self) -> None:
        super().__post_init__()
        weight = self.sentence_weight
        rule = "finite and above 0; objective.sentences=none turns pairs off"
        check(0 < weight < math.inf, "objective.sentence_weight", weight, rule)

    @property
    def pairs(self) -> bool:
        """Whether there is a loss on sentences, for which documents are cut in two."""
        return self.sentences is not Sentences.none

    def check_tokenizer(self, tokenizer: TokenizerParts, seq_len: int) -> None:
        """Raise `ConfigError` for a tokenizer without a mask, and for pairs without tokens on both sides of a text."""
        if not tokenizer.mask:
            raise ConfigError(
                "objective=masked_lm: this tokenizer has no mask token; name it in tokenizer.mask if that is neither "
                "[MASK] nor <mask>, else add one to tokenizer.special_tokens or choose another tokenizer (a prepared "
                "corpus keeps its own)"
            )
        if self.pairs and not (tokenizer.prefix and tokenizer.suffix):
            raise ConfigError(
                f"objective.sentences={self.sentences.value}: pairs need tokens before and after a document, such as "
                "[CLS] and [SEP], and this tokenizer lacks one of them; set tokenizer.prefix and tokenizer.suffix, or "
                "none here"
            )

    def densest(self, sequences: int, seq_len: int) -> Inputs:
        """Return the largest inputs, see `ObjectiveConfig`: as many tokens have a target as draws may mask."""
        masked = at_most(self.masking.rate * sequences * seq_len) / sequences
        return of_zeros(sequences, seq_len, targets=min(math.ceil(masked), seq_len))

    def build(self, model: Model) -> MaskedLM:
        """Return the module that is trained."""
        assert isinstance(model, EncoderModel), "a bidirectional model is an EncoderModel"
        return MaskedLM(self, model)

    def examples(self, vocabulary: Callable[[], Vocabulary], seed: int, seq_len: int) -> Examples:
        """Return the function that makes pairs of slots, if configured, and masks tokens; see `ObjectiveConfig`."""
        known = vocabulary()
        self.check_tokenizer(known.parts, seq_len)
        assert known.mask is not None
        masking = Masking(self.masking, known, known.mask, seed)
        if not self.pairs:
            return lambda slots: Inputs(*masking(slots), slots.offsets)
        pairing = Pairing(self.sentences, known, seed)

        def examples(slots: Slots) -> Inputs:
            paired = pairing(slots)
            return Inputs(*masking(paired.slots), paired.slots.offsets, paired.segments, paired.labels)

        return examples


class MaskedLM(Objective):
    """An encoder, the loss of its predictions of masked tokens, and perhaps a classifier of pairs."""

    def __init__(self, config: MaskedLMConfig, model: EncoderModel) -> None:
        super().__init__()
        self.config = config
        self.model = model
        if config.pairs:
            self.pooler = Pooler(model.width)
            self.sentence_classifier = nn.Linear(model.width, 2)

    @property
    def encoder(self) -> EncoderModel:
        """The model by its own type."""
        assert isinstance(self.model, EncoderModel)
        return self.model

    def forward(self, batch: Batch) -> Loss:
        """Return the sums over the batch's targets; head and vocabulary projection run only on rows that have one.

        Every parameter takes part in every call, also in one without targets: engines wait for each other's gradients.
        """
        model = self.encoder
        layout = Layout.of(batch.offsets, batch.max_len, batch.lengths)
        hidden = model(batch.tokens, batch.positions, layout, batch.segments)
        rows, targets = rows_with_targets(hidden, batch.targets, batch.num_targets)
        total, nll, correct = linear_cross_entropy(
            model.head_input(rows),
            model.head_weight(),
            targets,
            num_targets=batch.num_targets,
            bias=model.head_bias(),
            chunk_tokens=self.config.chunk_tokens,
            arithmetic=self.chunk_loss,
        )
        if not self.config.pairs:
            return Loss(total, nll, correct)
        sentences, labels = self._sentence_loss(hidden, batch)
        return Loss(total + sentences, nll, correct, labels)

    def _sentence_loss(self, hidden: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the cross-entropy of the labels and the sums that `Loss.labels` holds.

        In the first, (), each label is weighted by the masked tokens expected in its sequence.
        """
        firsts, lengths = batch.offsets[:-1], batch.offsets.diff()
        labels = torch.full_like(firsts, IGNORED, dtype=torch.int64) if batch.labels is None else batch.labels
        logits = self.sentence_classifier(self.pooler(hidden.index_select(0, firsts)))
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        losses = F.cross_entropy(wide, labels, ignore_index=IGNORED, reduction="none")
        sums = torch.stack([losses.detach().sum(), (wide.argmax(1) == labels).sum(), (labels != IGNORED).sum()])
        return self.config.sentence_weight * self.config.masking.rate * (losses * lengths).sum(), sums

    def initial(self, name: str) -> Initial:
        """Return the distribution of a tensor's initial values: of the classifier of pairs BERT's, else the model's."""
        if name.startswith("model."):
            return super().initial(name)
        return Initial(std=INIT_STD, cut=True) if name.endswith("weight") else Initial()

    def flops_per_token(self, seq_len: float) -> float:
        """Return the operations of a token, forward and backward; only masked tokens pass through the head.

        The classifier of pairs sees one token a sequence and is left out.
        """
        return self.encoder.flops_per_token(seq_len, head_share=self.config.masking.rate)

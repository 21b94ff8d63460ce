"""Replaced-token detection (Clark et al. 2020, "ELECTRA"): tell the tokens of a text from those that replaced others.

Holds the objective, its dataclass and how texts are corrupted: by draws, without a generator that learns beside the
model.

Letters: N tokens of the micro-batch, B slots, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.data.batch import IGNORED, Batch, Examples, Inputs, Slots, Vocabulary
from pretrain.errors import check
from pretrain.models.base import EncoderModel, Layout, Model, ModelKind
from pretrain.models.init import Initial
from pretrain.models.network import matrix_flops
from pretrain.objectives.base import Loss, Objective, ObjectiveConfig
from pretrain.objectives.draws import Use, uniform
from pretrain.objectives.masked_lm import INIT_STD
from pretrain.registry import register


class Replacements(StrEnum):
    """What replaces a token."""

    unigram = "unigram"  # the token at a random place in the text of its slot
    uniform = "uniform"  # any token of text, each being as likely


@register("objective", "replaced_tokens")
@dataclass(kw_only=True)
class ReplacedTokensConfig(ObjectiveConfig):
    """`objective=replaced_tokens`: tell which tokens were replaced, for ELECTRA's discriminator and any other encoder.

    Each token of text is replaced with probability `rate`; special tokens never are, nor do they replace others. A
    token that is drawn in its own place counts as original, as in the paper.

    The paper's best replacements come from a generator, a small masked language model that learns beside the model.
    There is none here. With `unigram` frequent tokens replace others more often, as with the paper's simplest generator
    (section 3.2), but they are those of the slot, so that they also fit its subject. With `uniform` most of them are
    rare, which is easier to tell (the random words of Yamaguchi et al. 2021, "Frustratingly simple pretraining
    alternatives to masked language modeling").

    Every token is a target, special ones too, as in the paper and in `transformers`: the loss of a step is the binary
    cross-entropy, divided by the tokens of the global batch. The model is built without the head that predicts tokens.
    """

    kind = ModelKind.bidirectional
    wants_special_tokens = True
    predicts_tokens = False

    rate: float = 0.15  # share of the tokens of text that are replaced; 0.25 in the paper's large models
    replacements: Replacements = Replacements.unigram  # unigram (tokens of the slot) or uniform (of the vocabulary)

    def __post_init__(self) -> None:
        check(0 < self.rate < 1, "objective.rate", self.rate, "must lie between 0 and 1; 0.15 is usual")

    def build(self, model: Model) -> ReplacedTokens:
        """Return the module that is trained."""
        assert isinstance(model, EncoderModel), "a bidirectional model is an EncoderModel"
        return ReplacedTokens(model)

    def examples(self, vocabulary: Callable[[], Vocabulary], seed: int, seq_len: int) -> Examples:
        """Return the function that replaces tokens; see `ObjectiveConfig`."""
        return Replacing(self, vocabulary(), seed)


class Replacing:
    """Replaces tokens of slots: a pure function of the slots, their keys and the seed."""

    def __init__(self, config: ReplacedTokensConfig, vocabulary: Vocabulary, seed: int) -> None:
        self._config = config
        self._special = vocabulary.special
        self._ordinary = np.flatnonzero(~vocabulary.special)  # ids of text
        self._seed = seed

    def __call__(self, slots: Slots) -> Inputs:
        """Return the tokens that the model sees and, as targets, 1 where they are not the original ones, else 0."""
        tokens, text = slots.tokens, ~self._special[slots.tokens]
        numbers = uniform(self._seed, Use.replacements, slots.keys, np.diff(slots.slots), columns=2)
        chosen = np.flatnonzero(text & (numbers[:, 0] < self._config.rate))
        shown = tokens.copy()
        if self._config.replacements is Replacements.uniform:
            shown[chosen] = self._ordinary[(numbers[chosen, 1] * len(self._ordinary)).astype(np.int64)]
        else:
            places = np.flatnonzero(text)
            bounds = places.searchsorted(slots.slots)  # (B+1,) those of each slot
            slot = slots.slots.searchsorted(chosen, side="right") - 1
            low, high = bounds[slot], bounds[slot + 1]
            shown[chosen] = tokens[places[low + (numbers[chosen, 1] * (high - low)).astype(np.int64)]]
        return Inputs(shown, (shown != tokens).astype(np.int64), slots.offsets)


class Detector(nn.Module):
    """The discriminator's head (Clark et al. 2020): a projection, gelu, and a number for each token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.classifier = nn.Linear(width, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map hidden states (N, D) to the logits of being replaced (N,)."""
        return self.classifier(F.gelu(self.dense(hidden))).squeeze(1)


class ReplacedTokens(Objective):
    """An encoder, a detector of replaced tokens, and its loss."""

    def __init__(self, model: EncoderModel) -> None:
        super().__init__()
        self.model = model
        self.detector = Detector(model.width)

    def forward(self, batch: Batch) -> Loss:
        """Return the sums over the batch's tokens; every parameter takes part, also where none is a target."""
        assert isinstance(self.model, EncoderModel)
        layout = Layout.of(batch.offsets, batch.max_len, batch.lengths)
        logits = self.detector(self.model(batch.tokens, batch.positions, layout, batch.segments))
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        real, replaced = batch.targets != IGNORED, batch.targets == 1
        losses = F.binary_cross_entropy_with_logits(logits, replaced.to(logits.dtype), reduction="none")
        total = losses.where(real, 0.0).sum()
        found = (logits > 0) == replaced
        told = torch.stack([(found & replaced).sum(), replaced.sum()])
        return Loss(total, total.detach(), (found & real).sum(), replaced=told)

    def initial(self, name: str) -> Initial:
        """Return the distribution of a tensor's initial values: of the detector BERT's, else the model's."""
        if name.startswith("model."):
            return super().initial(name)
        return Initial(std=INIT_STD, cut=True) if name.endswith("weight") else Initial()

    def flops_per_token(self, seq_len: float) -> float:
        """Return the operations of a token, forward and backward; each passes through the detector."""
        head = matrix_flops(self.detector.parameters(), reached=True)
        return self.model.flops_per_token(seq_len, head_share=0.0) + head

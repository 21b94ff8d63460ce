"""Causal language modelling: predict the token that follows each token.

Holds the objective and its dataclass; the loss itself is in `cross_entropy`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from pretrain.data.batch import Batch, Examples, Inputs, Vocabulary
from pretrain.errors import check
from pretrain.models.base import Layout, Model, ModelKind
from pretrain.objectives.base import Loss, Objective, TokenLossConfig
from pretrain.objectives.cross_entropy import linear_cross_entropy
from pretrain.registry import register


@register("objective", "causal_lm")
@dataclass(kw_only=True)
class CausalLMConfig(TokenLossConfig):
    """`objective=causal_lm`: predict the token that follows, inside its document."""

    kind = ModelKind.causal
    covers_text = True

    z_loss: float = 0.0  # weight of the squared log-normaliser, 1e-4 in PaLM; 0 is off
    label_smoothing: float = 0.0  # share of a target's probability that is spread over the vocabulary; 0.1 is usual

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 <= self.z_loss < math.inf, "objective.z_loss", self.z_loss, "not negative, and finite; 0 is off")
        smoothing, rule = self.label_smoothing, "must lie in [0, 1); 0 is off"
        check(0 <= smoothing < 1, "objective.label_smoothing", smoothing, rule)

    def build(self, model: Model) -> CausalLM:
        """Return the module that is trained."""
        return CausalLM(self, model)

    def examples(self, vocabulary: Callable[[], Vocabulary], seed: int, seq_len: int) -> Examples:
        """Return the function that keeps a slot's tokens as they are, with the next token of each as its target."""
        return lambda slots: Inputs(slots.tokens, slots.following, slots.offsets)


class CausalLM(Objective):
    """A model and the loss of its next-token predictions."""

    def __init__(self, config: CausalLMConfig, model: Model) -> None:
        super().__init__()
        self.config = config
        self.model = model

    def forward(self, batch: Batch) -> Loss:
        """Return the sums over the batch's targets; the head runs only on rows that have one."""
        layout = Layout.of(batch.offsets, batch.max_len, batch.lengths)
        hidden = self.model(batch.tokens, batch.positions, layout)
        return Loss(
            *linear_cross_entropy(
                hidden,
                self.model.head_weight(),
                batch.targets,
                num_targets=batch.num_targets,
                z_loss=self.config.z_loss,
                label_smoothing=self.config.label_smoothing,
                chunk_tokens=self.config.chunk_tokens,
                arithmetic=self.chunk_loss,
            )
        )

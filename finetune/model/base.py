"""The module that is fine-tuned: a model without its vocabulary projection, and the head of a task.

Holds the forward pass; heads are in `heads`, losses in `losses`.
"""

from __future__ import annotations

from torch import nn

from finetune.model.heads import build_head, pooled
from finetune.model.lora import initial_of_adapter
from finetune.model.losses import TaskLoss
from pretrain.data.batch import Batch
from pretrain.hub.family import Config
from pretrain.hub.task_heads import HeadKind, TaskHead
from pretrain.models.base import Layout, Model
from pretrain.models.init import Initial
from pretrain.objectives.base import Loss, Objective

INIT_STD = 0.02  # of a new head's matrices, as `initializer_range` of most released checkpoints


class FineTuned(Objective):
    """A model, the choice of the hidden states that a head maps to logits, the head, and the loss of the task."""

    def __init__(
        self,
        model: Model,
        config: Config,
        head: TaskHead,
        kind: HeadKind,
        loss: TaskLoss | None,  # None: for predictions alone
        *,
        outputs: int,  # of the head, C
        dropout: float,  # probability, in the head
    ) -> None:
        super().__init__()
        self.model = model
        self.head: nn.Sequential = build_head(head, config, outputs=outputs, dropout=dropout)
        self._pooling = head.pooling if kind is HeadKind.sequence else None
        self._loss = loss
        self._segmented = config.token_types > 1  # a single type is that of all tokens

    def forward(self, batch: Batch) -> Loss:
        """Return the sums over the batch's targets and the logits: (S, C) of sequences, (N, C) of tokens."""
        layout = Layout.of(batch.offsets, batch.max_len, batch.lengths)
        segments = (batch.segments,) if self._segmented else ()
        hidden = self.model(batch.tokens, batch.positions, layout, *segments)
        rows = hidden if self._pooling is None else pooled(hidden, batch.offsets, self._pooling)
        logits = self.head(rows).float()
        if self._loss is None or not batch.num_targets:  # a rank without examples left: its gradients are zeros
            total, correct = 0.0 * logits.sum(), logits.new_zeros(())
        else:
            total, correct = self._loss(logits, batch)
        return Loss(total, total.detach(), correct, logits=logits.detach())

    @property
    def has_loss(self) -> bool:
        """Whether it computes a loss, beside its answers."""
        return self._loss is not None

    def initial(self, name: str) -> Initial:
        """Return the distribution of a tensor's initial values, for tensors that no checkpoint holds."""
        if adapter := initial_of_adapter(name, self.get_parameter(name)):
            return adapter
        if name.startswith("model."):
            return super().initial(name)
        return Initial(std=INIT_STD) if name.endswith("weight") and self.get_parameter(name).ndim > 1 else Initial()

    def flops_per_token(self, seq_len: float) -> float:
        """Return the operations of a token, forward and backward, without the few of the head."""
        return self.model.flops_per_token(seq_len, head_share=0.0)

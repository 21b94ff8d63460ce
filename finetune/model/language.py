"""Language models that are fine-tuned as such: the objectives of pretraining, on pairs, and with adapters.

Holds what pairs and adapters change; the losses are those of `pretrain.objectives`.
"""

from __future__ import annotations

from finetune.model.lora import initial_of_adapter
from pretrain.models.base import EncoderDecoderModel, Model
from pretrain.models.init import Initial
from pretrain.objectives.base import Objective
from pretrain.objectives.causal_lm import CausalLM, CausalLMConfig
from pretrain.objectives.sequence_to_sequence import SequenceToSequence, SequenceToSequenceConfig


class _Adapted(Objective):
    """An objective whose model may have adapters, which no scheme of a network knows."""

    def initial(self, name: str) -> Initial:
        """Return the distribution of a tensor's initial values."""
        return initial_of_adapter(name, self.get_parameter(name)) or super().initial(name)


class AdaptedDecoder(_Adapted, CausalLM):
    """A decoder that learns the targets of its sequences."""

    def __init__(self, model: Model, *, label_smoothing: float, target_share: float) -> None:
        """`target_share` is the share of all tokens that are targets, for FLOPs."""
        super().__init__(CausalLMConfig(label_smoothing=label_smoothing), model)
        self._target_share = target_share

    def flops_per_token(self, seq_len: float) -> float:
        """Return the operations of a token, forward and backward; the head runs on targets alone."""
        return self.model.flops_per_token(seq_len, head_share=self._target_share)


class AdaptedEncoderDecoder(_Adapted, SequenceToSequence):
    """An encoder-decoder that learns targets from sources."""

    def __init__(self, model: EncoderDecoderModel, *, label_smoothing: float, target_share: float) -> None:
        """`target_share` is the share of the tokens of both sides that are targets, for FLOPs."""
        super().__init__(SequenceToSequenceConfig(label_smoothing=label_smoothing), model)
        self._target_share = target_share

    def flops_per_token(self, seq_len: float) -> float:
        """Return the operations of a token of either side; `seq_len` are the tokens of both sides of a pair."""
        assert isinstance(self.model, EncoderDecoderModel)
        return self.model.flops_per_token(seq_len, target_share=self._target_share)

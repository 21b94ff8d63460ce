"""Weights as they are exported, with the factors of muP in them: transformers multiplies by none.

Holds no factor: those are in `models/width_scaling`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pretrain.checkpoint.base import Reader
from pretrain.errors import check
from pretrain.models.decoder import DecoderConfig
from pretrain.models.layers import QKNorm
from pretrain.models.width_scaling import UNSCALED

_FINAL_NORM = "model.final_norm."


def absorbed(weights: Reader, network: Any) -> Reader:
    """Return a reader of weights that compute without muP what a network's `weights` compute with it."""
    scales = isinstance(network, DecoderConfig) and network.width_scaling != UNSCALED
    return _Absorbed(weights, network) if scales else weights


def check_adapters_alone(network: Any) -> None:
    """Raise `ConfigError` if adapters of a network mean nothing over its export: they learnt beside the factors."""
    if isinstance(network, DecoderConfig) and network.width_scaling != UNSCALED:
        rule = (
            "an export has its factors in the weights, adapters alone do not; leave out --adapters, to export the sum"
        )
        check(False, "model.mup_base_width", network.mup_base_width, rule)


class _Absorbed:
    """The weights of a decoder under muP; see `Reader` in `checkpoint.base`.

    The factor of the logits goes into the last norm, which a tied head shares with nothing; that of the scores into
    what makes the queries: the norm that they end in, or else their rows of the projection.
    """

    def __init__(self, weights: Reader, network: DecoderConfig) -> None:
        self._weights = weights
        self._output, self._scores = network.width_scaling.output, network.width_scaling.scores
        queries = network.heads * network.head_width
        # Endings of the tensors that make queries, and how many of their first elements do.
        if network.qk_norm is QKNorm.none:
            self._queries = {".qkv.weight": queries * network.width, ".qkv.bias": queries}
        else:
            self._queries = {".q_norm.weight": queries, ".q_norm.bias": queries}

    def kinds(self, name: str) -> dict[str, torch.Size]:
        return self._weights.kinds(name)

    def __call__(self, name: str, kind: str, start: int, numel: int) -> Tensor:
        values = self._weights(name, kind, start, numel)
        if name.startswith(_FINAL_NORM):
            return values * self._output
        count = next((count for ending, count in self._queries.items() if name.endswith(ending)), 0)
        of_queries, others = values.tensor_split([max(min(count - start, numel), 0)])
        return torch.cat([of_queries * self._scores, others])

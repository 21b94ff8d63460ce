"""Disentangled attention: tokens and distances are vectors apart, and projections of both meet (He et al. 2021).

Holds the layer; how distances share vectors and what is added to scores is in `attention/disentangled`. Letters of
shapes: `models/base.py`, and P rows of the table of distances.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.models.attention.disentangled import DisentangledBias, DistanceVectors
from pretrain.models.layers import Attention, Relative
from pretrain.models.network import matrix_flops


class DisentangledAttention(Attention):
    """Self-attention whose scores have terms of a token and a distance (He et al. 2021, equation 4).

    Content to position is the product of a query with the key of its distance to the key's token, position to content
    that of the key with the query of this distance. With both, scores are divided by the root of 3 E: the root of the
    number of terms keeps their variance.
    """

    def __init__(
        self,
        *,
        content_to_position: bool,
        position_to_content: bool,
        shared: bool,  # whether vectors of distances pass through the projections of tokens
        position_dropout: float,  # probability, of the vectors of distances
        **parts: Any,  # of `Attention`
    ) -> None:
        terms = content_to_position + position_to_content
        scale = (parts["head_width"] * (1 + terms)) ** -0.5
        super().__init__(**parts | {"scale": scale})
        self.terms, self.position_scale = terms, scale
        self.content_to_position, self.position_to_content = content_to_position, position_to_content
        self.shared, self.position_dropout = shared, position_dropout

        def projection() -> nn.Linear:
            return nn.Linear(parts["width"], self.heads * self.head_width, bias=parts["bias"])

        self.position_key = projection() if content_to_position and not shared else None
        self.position_query = projection() if position_to_content and not shared else None

    def bias(self, q: Tensor, k: Tensor, relative: Relative | None) -> DisentangledBias:
        """Return what is added to the scores of queries and keys, (N, H, E) each."""
        assert isinstance(relative, DistanceVectors), "this attention reads vectors of distances"
        queries, keys = self._projected(F.dropout(relative.vectors, self.position_dropout, self.training))
        of_queries = self._products(q, keys) if self.content_to_position else None
        of_keys = self._products(k, queries) if self.position_to_content else None
        return DisentangledBias(relative.distances, of_queries, of_keys)

    def _projected(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return queries and keys of distances, (P, H E) each, from their vectors (P, D); empty if no term has them."""
        if self.shared:  # whole, for adapters and shards act on layers; values of distances mean nothing
            queries, keys, _ = self.qkv(vectors).chunk(3, dim=-1)
            return queries, keys
        nothing = vectors[:0]
        queries = nothing if self.position_query is None else self.position_query(vectors)
        keys = nothing if self.position_key is None else self.position_key(vectors)
        return queries, keys

    def _products(self, tokens: Tensor, distances: Tensor) -> Tensor:
        """Return the scaled products of tokens (N, H, E) and distances (P, H E), (N, H, P)."""
        return torch.einsum("nhe,phe->nhp", tokens, distances.unflatten(-1, tokens.shape[1:]) * self.position_scale)

    def position_flops(self, rows: int, *, reached: bool) -> float:
        """Return the operations of one token's products with `rows` distances (see `NetworkConfig.flops_per_token`).

        Less what projections of distances count for there as parameters: tokens do not pass through them.
        """
        products = 2.0 * self.terms * self.heads * self.head_width * rows * (3 if reached else 1)
        own = [layer.weight for layer in (self.position_key, self.position_query) if layer is not None]
        return products - matrix_flops(own, reached=reached)

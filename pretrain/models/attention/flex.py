"""Attention through torch's flex_attention: the whole stream as one sequence under a block mask of documents.

Holds no kernel: torch.compile generates one for the mask. Its backward exists on the GPU only.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pretrain.errors import ConfigError, check
from pretrain.models.attention.masks import check_window
from pretrain.models.base import Asked, Attend, AttentionConfig, AttentionUse, Bias, Distances, Layout, Planner
from pretrain.registry import register

Seen = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # (batch, head, query, key) -> whether the query sees the key
Scored = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]  # (score, batch, head, query, key) -> its score
NARROWEST = 16  # head that it takes
KERNELS = 64  # that may be compiled in one process
NO_DROPOUT = "attention=flex has no dropout of weights; set 0, or attention=sdpa"


@register("attention", "flex")
@dataclass(kw_only=True)
class FlexConfig(AttentionConfig):
    """`attention=flex`: CUDA devices in any precision, no attention dropout; compiles on first use."""

    def check(self, *, dtype: torch.dtype, dropout: float, dropout_key: str, bias: str | None = None) -> None:
        """Raise `ConfigError` for dropout."""
        check(dropout == 0, dropout_key, dropout, NO_DROPOUT)

    def build(self) -> Attend:
        """Return the backend; raise `ConfigError` without a CUDA device."""
        if not torch.cuda.is_available():
            raise ConfigError(
                "attention=flex: needs a CUDA device (torch has no backward of it on CPU); use attention=sdpa"
            )
        return make_flex()

    def start(self, use: AttentionUse, device: torch.device) -> str:
        """Refuse heads that no kernel is generated for; see `AttentionConfig`."""
        if use.head_width < NARROWEST:
            raise ConfigError(
                f"attention=flex: computes heads of {NARROWEST} and more, and the model has heads of {use.head_width}; "
                "set fewer model.heads, or attention=auto"
            )
        return super().start(use, device)


def make_flex() -> Flex:
    """Return the backend without asking for a device."""
    return Flex()


class Flex(Planner):
    """The backend (see `Attend`), and its plans (see `Planner`)."""

    def __init__(self) -> None:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention  # pulls in torch._dynamo

        # Encoder, decoder and cross-attention, training and not, lengths that vary: more kernels than torch's limit,
        # beyond which it would compute all scores of the stream. Versions before 2.13 have no such option.
        limit: dict[str, Any] = (
            {"recompile_limit": KERNELS} if "recompile_limit" in inspect.signature(torch.compile).parameters else {}
        )
        self._inside, self._alone = flex_attention, torch.compile(flex_attention, **limit)
        self._make_mask = torch.compile(create_block_mask, dynamic=True, **limit)  # never holds all pairs of tokens

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layout: Layout,
        *,
        causal: bool,
        window: int | None = None,
        dropout: float = 0,
        scale: float | None = None,
        bias: Bias | None = None,
    ) -> Tensor:
        """Return the attention of each sequence over its own keys, (Nq, H, E) (see `Attend`)."""
        if not q.is_cuda:
            raise ConfigError(f"attention=flex: computes on CUDA, not on {q.device}; use attention=sdpa")
        check(dropout == 0, "attention_dropout", dropout, NO_DROPOUT)
        check_window(layout, causal, window)
        # A block that is compiled has the kernel in its own graph.
        compute = self._inside if torch.compiler.is_compiling() else self._alone
        query, key, value = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
        out = compute(
            query,
            key,
            value,
            score_mod=None if bias is None else biased_score(layout, len(q), len(k), bias),
            block_mask=self._mask(layout, len(q), len(k), causal, window),
            scale=scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        return out.squeeze(0).transpose(0, 1)

    def plan(self, layout: Layout, asked: Asked) -> None:
        """Make the mask of blocks, and the places of a bias; see `Planner`."""
        if asked.dropout or not layout.q_offsets.is_cuda:
            return  # which the call refuses
        self._mask(layout, asked.num_q, asked.num_k, asked.causal, asked.window)
        if asked.distances is not None:
            _places(layout, asked.num_q, asked.num_k, asked.distances)

    def _mask(self, layout: Layout, num_q: int, num_k: int, causal: bool, window: int | None) -> Any:
        """Return the `BlockMask` of a layout, made once in a pass."""

        def make() -> Any:
            mask = document_mask(layout, num_q, num_k, causal, window)
            with torch.no_grad():  # else evaluation and training have graphs of their own
                return self._make_mask(mask, None, None, num_q, num_k, device=layout.q_offsets.device)

        return layout.plan(("flex", causal, window), make)


def document_mask(layout: Layout, num_q: int, num_k: int, causal: bool, window: int | None) -> Seen:
    """Return flex_attention's mask function over the flat streams of `num_q` queries and `num_k` keys."""
    q_owner, q_position = _owner_and_position(layout.q_offsets, num_q)
    k_owner, k_position = _owner_and_position(layout.k_offsets, num_k)

    def seen(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        behind = q_position[q] - k_position[k]
        mask = q_owner[q] == k_owner[k]
        if causal:
            mask = mask & (behind >= 0)
        if window is not None:
            mask = mask & (behind.abs() < window)
        return mask

    return seen


def biased_score(layout: Layout, num_q: int, num_k: int, bias: Bias) -> Scored:
    """Return flex_attention's score function over the same streams, which adds a bias to scores that are scaled."""
    farthest = bias.distances.farthest
    q_position, k_position, rows = _places(layout, num_q, num_k, bias.distances)
    single = bias.single()  # its gradients are added up in this precision

    def scored(score: Tensor, batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        relative = (k_position[k] - q_position[q]).clamp(-farthest, farthest)
        return score + single.at(head, q, k, rows[relative + farthest])

    return scored


def _places(layout: Layout, num_q: int, num_k: int, distances: Distances) -> tuple[Tensor, Tensor, Tensor]:
    """Return the positions of queries and of keys, and the row of each distance from -`farthest` on."""

    def make() -> tuple[Tensor, Tensor, Tensor]:
        _, q_position = _owner_and_position(layout.q_offsets, num_q)
        _, k_position = _owner_and_position(layout.k_offsets, num_k)
        rows = distances.rows(torch.arange(-distances.farthest, distances.farthest + 1))
        return q_position, k_position, rows.to(q_position.device, non_blocking=True)

    return layout.plan(("flex places", distances), make)


def _owner_and_position(offsets: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """Return the sequence of each row of a stream (N,), and its position counted back from the end of the sequence.

    There, the last query meets the last key.
    """
    row = torch.arange(num, device=offsets.device, dtype=offsets.dtype)
    owner = torch.searchsorted(offsets, row, right=True) - 1
    return owner, row - offsets[owner + 1]

"""The layers and blocks that transformers are built from, on flat ragged streams (N, D).

Holds no architecture and no attention kernel: these are in `decoder` and `encoder`, and in `attention/`. Letters of
shapes: `models/base.py`.
"""

from __future__ import annotations

from enum import StrEnum

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.models.base import Attend, Layout

Rotary = tuple[Tensor, Tensor]  # cosines and sines of the rotation angles, (N, 1, E/2) fp32 each


class Norm(StrEnum):
    """Normalisation over the width."""

    layernorm = "layernorm"  # Ba et al. 2016
    rmsnorm = "rmsnorm"  # Zhang and Sennrich 2019


class Activation(StrEnum):
    """Nonlinearity of the MLP."""

    gelu = "gelu"  # Hendrycks and Gimpel 2016, exact
    gelu_tanh = "gelu_tanh"  # its tanh approximation, as GPT-2 uses it
    swiglu = "swiglu"  # Shazeer 2020: silu(gate) * up
    geglu = "geglu"  # Shazeer 2020: gelu(gate) * up

    @property
    def gated(self) -> bool:
        """Whether the MLP has a second projection, multiplied by the nonlinearity of the first."""
        return self in (Activation.swiglu, Activation.geglu)


class Positions(StrEnum):
    """How a model encodes the position of a token."""

    learned = "learned"  # one vector a position, added to the embedding (GPT-2, BERT)
    sinusoidal = "sinusoidal"  # fixed vectors, added to the scaled embedding (Vaswani et al. 2017); decoders only
    rotary = "rotary"  # queries and keys rotated (Llama, ModernBERT)


def activate(kind: Activation, x: Tensor) -> Tensor:
    """Apply the nonlinearity alone, element by element; of a gated one, that of its gate."""
    if kind is Activation.swiglu:
        return F.silu(x)
    return F.gelu(x, approximate="tanh" if kind is Activation.gelu_tanh else "none")


def make_norm(kind: Norm, width: int, eps: float, bias: bool) -> nn.Module:
    """Return the normalisation layer; RMSNorm has no bias."""
    if kind is Norm.layernorm:
        return nn.LayerNorm(width, eps=eps, bias=bias)
    return nn.RMSNorm(width, eps=eps)


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """Return fixed position vectors (N, D): sines, then cosines, of geometric frequencies (Vaswani et al. 2017)."""
    angles = positions[:, None] * _frequencies(width, 10_000.0, positions.device)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def rotary(positions: Tensor, head_width: int, theta: float) -> Rotary:
    """Return cosines and sines of the rotation at each position, (N, 1, E/2) (RoPE, Su et al. 2021)."""
    angles = positions[:, None, None] * _frequencies(head_width, theta, positions.device)
    return angles.cos(), angles.sin()


def _frequencies(width: int, theta: float, device: torch.device) -> Tensor:
    """Return theta^(-2i / width) for i < width / 2, in fp32; no buffer, which casting the model would round."""
    return theta ** -(torch.arange(0, width, 2, device=device, dtype=torch.float32) / width)


def rotate(x: Tensor, tables: Rotary) -> Tensor:
    """Rotate the pairs (i, i + E/2) of x (N, heads, E) by their position's angle, in fp32; Llama's pairing."""
    cos, sin = tables
    left, right = x.chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1).to(x.dtype)


class Attention(nn.Module):
    """Self-attention with one fused projection to queries, keys and values, heads in that order.

    Fewer key-value heads than heads is grouped-query attention (Ainslie et al. 2023).
    """

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        kv_heads: int,
        bias: bool,
        dropout: float,  # of attention weights
        causal: bool,
        window: int | None,  # in tokens, see `Attend`
        attend: Attend,
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_width = heads, kv_heads, width // heads
        self.dropout, self.causal, self.window, self.attend = dropout, causal, window, attend
        self.qkv = nn.Linear(width, (heads + 2 * kv_heads) * self.head_width, bias=bias)
        self.out = nn.Linear(heads * self.head_width, width, bias=bias)

    def forward(self, x: Tensor, layout: Layout, tables: Rotary | None, cache: KeyValueCache | None) -> Tensor:
        """Map x (N, D) to (N, D). With a cache the queries see its keys too, and the layout counts them."""
        qkv = self.qkv(x).unflatten(-1, (-1, self.head_width))  # (N, H + 2K, E)
        if tables is not None:
            qk, v = qkv.split([self.heads + self.kv_heads, self.kv_heads], dim=1)
            q, k = rotate(qk, tables).split([self.heads, self.kv_heads], dim=1)
        else:
            q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        if cache is not None:
            k, v = cache.extend(k, v, layout)
        dropout = self.dropout if self.training else 0.0
        mixed = self.attend(q, k, v, layout, causal=self.causal, window=self.window, dropout=dropout)
        return self.out(mixed.flatten(1))


class KeyValueCache:
    """Keys and values of one layer, sequences end to end, so that a new token costs one position."""

    def __init__(self) -> None:
        self._seen: tuple[Tensor, Tensor] | None = None  # (Nk, K, E) each

    def extend(self, k: Tensor, v: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """Append the newest positions (Nq, K, E) of every sequence; return all so far, (Nk, K, E)."""
        if self._seen is not None:
            rows = layout.plan("cached", lambda: _rows_with_cache(layout))
            k, v = (torch.cat(pair).index_select(0, rows) for pair in zip(self._seen, (k, v), strict=True))
        self._seen = k, v
        return k, v

    def keep(self, rows: Tensor) -> None:
        """Drop all but these rows: those of sequences that go on."""
        assert self._seen is not None
        k, v = self._seen
        self._seen = k.index_select(0, rows), v.index_select(0, rows)


def _rows_with_cache(layout: Layout) -> Tensor:
    """Return which row of the cached keys and, behind them, the new ones each key of a layout is, (Nk,) int64."""
    starts, new_starts = layout.k_offsets[:-1].long(), layout.q_offsets[:-1].long()
    sizes, new = layout.k_offsets.diff(), layout.q_offsets.diff()
    old = (sizes - new).long()
    owner = torch.repeat_interleave(sizes)
    inside = torch.arange(len(owner), device=owner.device) - starts[owner]
    beyond = inside - old[owner]
    cached = (starts - new_starts)[owner] + inside
    return torch.where(beyond < 0, cached, old.sum() + new_starts[owner] + beyond)


class MLP(nn.Module):
    """Two projections around a nonlinearity; a gated one fuses its gate and its up projection, in that order."""

    def __init__(self, *, width: int, hidden: int, activation: Activation, bias: bool) -> None:
        super().__init__()
        self.activation = activation
        self.up = nn.Linear(width, 2 * hidden if activation.gated else hidden, bias=bias)
        self.down = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (N, D) to (N, D)."""
        up = self.up(x)
        if self.activation.gated:
            gate, up = up.chunk(2, dim=-1)
            return self.down(activate(self.activation, gate) * up)
        return self.down(activate(self.activation, up))


class Block(nn.Module):
    """One pre-norm layer: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(
        self, *, attention_norm: nn.Module, attention: Attention, mlp_norm: nn.Module, mlp: MLP, dropout: float
    ) -> None:
        super().__init__()
        self.attention_norm, self.attention = attention_norm, attention
        self.mlp_norm, self.mlp = mlp_norm, mlp
        self.dropout = dropout  # of both residual branches

    def forward(
        self, x: Tensor, layout: Layout, tables: Rotary | None = None, cache: KeyValueCache | None = None
    ) -> Tensor:
        """Map the residual stream (N, D) to the next one."""
        mixed = self.attention(self.attention_norm(x), layout, tables, cache)
        x = x + F.dropout(mixed, self.dropout, self.training)
        return x + F.dropout(self.mlp(self.mlp_norm(x)), self.dropout, self.training)


class PostNormBlock(Block):
    """One post-norm layer (Vaswani et al. 2017): norm(x + attention(x)), then norm(x + mlp(x))."""

    def forward(
        self, x: Tensor, layout: Layout, tables: Rotary | None = None, cache: KeyValueCache | None = None
    ) -> Tensor:
        """Map the residual stream (N, D) to the next one."""
        mixed = self.attention(x, layout, tables, cache)
        x = self.attention_norm(x + F.dropout(mixed, self.dropout, self.training))
        return self.mlp_norm(x + F.dropout(self.mlp(x), self.dropout, self.training))

"""The layers and blocks that transformers are built from, on flat ragged streams (N, D).

Holds no architecture and no attention kernel: these are in `decoder`, `encoder` and `encoder_decoder`, and in
`attention/`. Letters of shapes: `models/base.py`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.models.attention.disentangled import DistanceVectors
from pretrain.models.base import Attend, Bias, Layout
from pretrain.models.generation.cache import KeyValueCache, SourceCache
from pretrain.models.rotary import Rotary, frequencies, rotate

Relative = Bias | DistanceVectors  # what layers share of relative positions: the bias itself, or what each makes it of


class Norm(StrEnum):
    """Normalisation over the width."""

    layernorm = "layernorm"  # Ba et al. 2016
    rmsnorm = "rmsnorm"  # Zhang and Sennrich 2019
    zero_centered_rmsnorm = "zero_centered_rmsnorm"  # the same, its scale kept as a difference from 1 (Gemma)


class Activation(StrEnum):
    """Nonlinearity of the MLP."""

    gelu = "gelu"  # Hendrycks and Gimpel 2016, exact
    gelu_tanh = "gelu_tanh"  # its tanh approximation, as GPT-2 uses it
    swiglu = "swiglu"  # Shazeer 2020: silu(gate) * up
    geglu = "geglu"  # Shazeer 2020: gelu(gate) * up
    geglu_tanh = "geglu_tanh"  # the same with gelu's tanh approximation, as T5 v1.1 uses it
    relu = "relu"  # Vaswani et al. 2017
    silu = "silu"  # x * sigmoid(x), also called swish (Marian)

    @property
    def gated(self) -> bool:
        """Whether the MLP has a second projection, multiplied by the nonlinearity of the first."""
        return self in (Activation.swiglu, Activation.geglu, Activation.geglu_tanh)


class Positions(StrEnum):
    """How a model encodes the position of a token."""

    learned = "learned"  # one vector a position, added to the embedding (GPT-2, BERT)
    sinusoidal = "sinusoidal"  # fixed vectors, added to the scaled embedding (Vaswani et al. 2017); not for encoders
    rotary = "rotary"  # queries and keys rotated (Llama, ModernBERT)
    relative = "relative"  # a learned value for each distance, added to the scores (T5); encoder-decoders only
    disentangled = "disentangled"  # a learned vector for each distance, which tokens meet (DeBERTa); encoders only


class QKNorm(StrEnum):
    """Normalisation of queries and keys before they meet (Henry et al. 2020)."""

    none = "none"
    head = "head"  # over the width of each head, with one scale for all heads (Qwen 3, Gemma 3)
    projection = "projection"  # over all heads together (OLMo 2)


class Order(StrEnum):
    """What a block normalises; all but post normalise once more after the last block."""

    post = "post"  # the sum of the residual stream and a branch (Vaswani et al. 2017, BERT)
    pre = "pre"  # what a branch reads (GPT-2, Llama, ModernBERT, T5)
    output = "output"  # what a branch returns (Swin v2, Liu et al. 2022; OLMo 2)
    sandwich = "sandwich"  # both (CogView, Ding et al. 2021; Gemma 3)
    parallel = "parallel"  # pre, and both branches read the same stream (GPT-J, Wang and Komatsuzaki 2021; GPT-NeoX)


def activate(kind: Activation, x: Tensor) -> Tensor:
    """Apply the nonlinearity alone, element by element; of a gated one, that of its gate."""
    if kind is Activation.relu:
        return F.relu(x)
    if kind in (Activation.swiglu, Activation.silu):
        return F.silu(x)
    approximate = kind in (Activation.gelu_tanh, Activation.geglu_tanh)
    return F.gelu(x, approximate="tanh" if approximate else "none")


def make_norm(kind: Norm, width: int, eps: float, bias: bool) -> nn.LayerNorm | nn.RMSNorm:
    """Return the normalisation layer; RMSNorm has no bias."""
    if kind is Norm.layernorm:
        return nn.LayerNorm(width, eps=eps, bias=bias)
    return (nn.RMSNorm if kind is Norm.rmsnorm else ZeroCenteredRMSNorm)(width, eps=eps)


class ZeroCenteredRMSNorm(nn.RMSNorm):
    """RMSNorm that multiplies by 1 + weight, in fp32 (Gemma); weights begin at 0."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D) to (..., D)."""
        wide = F.rms_norm(x.float(), self.normalized_shape, eps=self.eps)
        return (wide * (1.0 + self.weight.float())).to(x.dtype)


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """Return fixed position vectors (N, D): sines, then cosines, of geometric frequencies (Vaswani et al. 2017)."""
    angles = positions[:, None] * frequencies(width, 10_000.0, positions.device)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class Embedding(nn.Embedding):
    """One vector a token, position, segment or distance."""

    def reset_parameters(self) -> None:
        """Draw values on a real device alone: to draw none on the meta device torch imports its compiler, for 1 s."""
        if not self.weight.is_meta:
            super().reset_parameters()


class Fused(nn.Linear):
    """Several projections of one input as one matrix, whose rows are theirs, one after another."""

    def __init__(self, width: int, parts: dict[str, int], *, bias: bool) -> None:
        """`parts` are the projections' names, and how many outputs each has."""
        super().__init__(width, sum(parts.values()), bias=bias)
        self.parts = parts


class Attention(nn.Module):
    """Self-attention with one fused projection to queries, keys and values, heads in that order.

    Fewer key-value heads than heads is grouped-query attention (Ainslie et al. 2023). `qk_norms` are those of queries
    and of keys, over the width of a head or of all of them.
    """

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        kv_heads: int,
        head_width: int,
        bias: bool,
        qkv_bias: bool,
        qk_norms: tuple[nn.LayerNorm | nn.RMSNorm, nn.LayerNorm | nn.RMSNorm] | None,
        dropout: float,  # of attention weights
        causal: bool,
        window: int | None,  # in tokens, see `Attend`
        scale: float | None,  # of the scores; None: 1 / sqrt(head_width)
        attend: Attend,
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_width = heads, kv_heads, head_width
        self.dropout, self.causal, self.window = dropout, causal, window
        self.scale, self.attend = scale, attend
        keys = kv_heads * head_width
        self.qkv = Fused(width, {"q": heads * head_width, "k": keys, "v": keys}, bias=qkv_bias)
        self.q_norm, self.k_norm = qk_norms or (None, None)
        self.out = nn.Linear(heads * self.head_width, width, bias=bias)

    def forward(
        self,
        x: Tensor,
        layout: Layout,
        tables: Rotary | None,
        cache: KeyValueCache | None,
        relative: Relative | None = None,
    ) -> Tensor:
        """Map x (N, D) to (N, D). With a cache the queries see its keys too; the layout counts the new ones alone."""
        qkv = self.qkv(x).unflatten(-1, (-1, self.head_width))  # (N, H + 2K, E)
        qk, v = qkv.split([self.heads + self.kv_heads, self.kv_heads], dim=1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = qk.split([self.heads, self.kv_heads], dim=1)
            qk = torch.cat([_normed(self.q_norm, q), _normed(self.k_norm, k)], dim=1)
        if tables is not None:
            qk = rotate(qk, tables)
        q, k = qk.split([self.heads, self.kv_heads], dim=1)
        attend = self.attend if cache is None else cache
        dropout = self.dropout if self.training else 0.0
        mixed = attend(
            q,
            k,
            v,
            layout,
            causal=self.causal,
            window=self.window,
            dropout=dropout,
            scale=self.scale,
            bias=self.bias(q, k, relative),
        )
        return self.out(mixed.flatten(1))

    def bias(self, q: Tensor, k: Tensor, relative: Relative | None) -> Bias | None:
        """Return what is added to the scores of queries (N, H, E) and keys (N, K, E): here, what all layers share."""
        assert not isinstance(relative, DistanceVectors), "vectors of distances are for `DisentangledAttention`"
        return relative


def _normed(norm: nn.LayerNorm | nn.RMSNorm, x: Tensor) -> Tensor:
    """Return x (N, heads, E), normalised over E or over all heads, as wide as the norm's scale is.

    Under autocast norms return fp32 on a GPU; attention needs queries and keys of one dtype with values.
    """
    [width] = norm.normalized_shape  # the scale itself may be elsewhere, sharded
    return norm(x.flatten(1).unflatten(1, (-1, width))).reshape(x.shape).to(x.dtype)


class CrossAttention(nn.Module):
    """Attention from a target to all states of its source; keys and values have one fused projection, in that order."""

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        head_width: int,
        bias: bool,
        dropout: float,  # of attention weights
        scale: float | None,  # of the scores; None: 1 / sqrt(head_width)
        attend: Attend,
    ) -> None:
        super().__init__()
        self.heads, self.head_width = heads, head_width
        self.dropout, self.scale, self.attend = dropout, scale, attend
        self.q = nn.Linear(width, heads * head_width, bias=bias)
        self.kv = Fused(width, {"k": heads * head_width, "v": heads * head_width}, bias=bias)
        self.out = nn.Linear(heads * head_width, width, bias=bias)

    def keys_and_values(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and the values of the source's final hidden states (Ns, D), (Ns, H, E) each."""
        k, v = self.kv(states).unflatten(-1, (-1, self.head_width)).split([self.heads, self.heads], dim=1)
        return k, v

    def forward(self, x: Tensor, source: tuple[Tensor, Tensor] | SourceCache, layout: Layout) -> Tensor:
        """Map x (N, D) to (N, D); `source` is what `keys_and_values` returned or a cache of it, `layout`'s keys."""
        q = self.q(x).unflatten(-1, (-1, self.head_width))
        if isinstance(source, SourceCache):
            return self.out(source.attend(q, layout, self.scale).flatten(1))
        dropout = self.dropout if self.training else 0.0
        mixed = self.attend(q, *source, layout, causal=False, dropout=dropout, scale=self.scale)
        return self.out(mixed.flatten(1))


class MLP(nn.Module):
    """Two projections around a nonlinearity; a gated one fuses its gate and its up projection, in that order."""

    def __init__(self, *, width: int, hidden: int, activation: Activation, bias: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.activation = activation
        self.dropout = dropout  # probability, of what the nonlinearity returns
        self.up = Fused(width, {"gate": hidden, "up": hidden} if activation.gated else {"up": hidden}, bias=bias)
        self.down = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (N, D) to (N, D)."""
        up = self.up(x)
        if self.activation.gated:
            gate, up = up.chunk(2, dim=-1)
            hidden = activate(self.activation, gate) * up
        else:
            hidden = activate(self.activation, up)
        return self.down(F.dropout(hidden, self.dropout, self.training))


class Block(nn.Module):
    """One pre-norm layer: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(
        self, *, attention_norm: nn.Module, attention: Attention, mlp_norm: nn.Module, mlp: MLP, dropout: float
    ) -> None:
        super().__init__()
        self.attention_norm, self.attention = attention_norm, attention
        self.mlp_norm, self.mlp = mlp_norm, mlp
        self.dropout = dropout  # of all residual branches

    def forward(
        self,
        x: Tensor,
        layout: Layout,
        tables: Rotary | None = None,
        cache: KeyValueCache | None = None,
        relative: Relative | None = None,
    ) -> Tensor:
        """Map the residual stream (N, D) to the next one."""
        x = self.add(x, self.attention_norm, self.attention, layout, tables, cache, relative)
        return self.add(x, self.mlp_norm, self.mlp)

    def add(self, x: Tensor, norm: nn.Module, branch: nn.Module, *inputs: Any) -> Tensor:
        """Return the residual stream after a branch."""
        return x + F.dropout(branch(norm(x), *inputs), self.dropout, self.training)


class PostNormBlock(Block):
    """One post-norm layer (Vaswani et al. 2017): norm(x + attention(x)), then norm(x + mlp(x))."""

    def add(self, x: Tensor, norm: nn.Module, branch: nn.Module, *inputs: Any) -> Tensor:
        """Return the residual stream after a branch."""
        return norm(x + F.dropout(branch(x, *inputs), self.dropout, self.training))


class OutputNormBlock(Block):
    """One layer that normalises what branches return: x + norm(attention(x)), then x + norm(mlp(x)) (OLMo 2)."""

    def add(self, x: Tensor, norm: nn.Module, branch: nn.Module, *inputs: Any) -> Tensor:
        """Return the residual stream after a branch."""
        return x + F.dropout(norm(branch(x, *inputs)), self.dropout, self.training)


class SandwichBlock(Block):
    """One pre-norm layer that also normalises what branches return: x + norm(attention(norm(x))), then the MLP."""

    def __init__(self, *, attention_output_norm: nn.Module, mlp_output_norm: nn.Module, **parts: Any) -> None:
        super().__init__(**parts)
        self.attention_output_norm, self.mlp_output_norm = attention_output_norm, mlp_output_norm

    def add(self, x: Tensor, norm: nn.Module, branch: nn.Module, *inputs: Any) -> Tensor:
        """Return the residual stream after a branch."""
        output_norm = self.attention_output_norm if branch is self.attention else self.mlp_output_norm
        return x + F.dropout(output_norm(branch(norm(x), *inputs)), self.dropout, self.training)


class ParallelBlock(Block):
    """One pre-norm layer whose branches read the same stream: x + attention(norm(x)) + mlp(norm(x)) (GPT-NeoX)."""

    def forward(
        self,
        x: Tensor,
        layout: Layout,
        tables: Rotary | None = None,
        cache: KeyValueCache | None = None,
        relative: Relative | None = None,
    ) -> Tensor:
        """Map the residual stream (N, D) to the next one."""
        attended = self.attention(self.attention_norm(x), layout, tables, cache, relative)
        added = self.mlp(self.mlp_norm(x))
        return x + F.dropout(attended, self.dropout, self.training) + F.dropout(added, self.dropout, self.training)


BLOCKS: dict[Order, type[Block]] = {
    Order.post: PostNormBlock,
    Order.pre: Block,
    Order.output: OutputNormBlock,
    Order.sandwich: SandwichBlock,
    Order.parallel: ParallelBlock,
}


class SeenSource(NamedTuple):
    """What a block of a decoder sees of a source."""

    states: Tensor | SourceCache  # final hidden states (Ns, D), or what this block keeps of them in a generation
    layout: Layout  # from the target's queries to the source's keys


class CrossBlock(Block):
    """One pre-norm layer of a decoder that sees a source: self-attention, cross-attention, MLP."""

    def __init__(self, *, cross_norm: nn.Module, cross: CrossAttention, **parts: Any) -> None:
        super().__init__(**parts)
        self.cross_norm, self.cross = cross_norm, cross

    def forward(
        self,
        x: Tensor,
        layout: Layout,
        tables: Rotary | None = None,
        cache: KeyValueCache | None = None,
        relative: Relative | None = None,
        seen: SeenSource | None = None,
    ) -> Tensor:
        """Map the residual stream of the target (N, D) to the next one."""
        assert seen is not None, "this block looks at a source"
        x = self.add(x, self.attention_norm, self.attention, layout, tables, cache, relative)
        source = self.cross.keys_and_values(seen.states) if isinstance(seen.states, Tensor) else seen.states
        x = self.add(x, self.cross_norm, self.cross, source, seen.layout)
        return self.add(x, self.mlp_norm, self.mlp)


class PostNormCrossBlock(CrossBlock, PostNormBlock):
    """The same, post-norm: what is added to the residual stream is normalised with it."""

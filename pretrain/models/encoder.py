"""The bidirectional encoder: BERT, RoBERTa, DistilBERT, ModernBERT and what lies between them.

Holds the architecture and its dataclass; blocks are in `layers`, kernels in `attention/`. Letters: `models/base.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.errors import check
from pretrain.models.base import Attend, EncoderModel, Layout
from pretrain.models.init import Init, Initial, scheme
from pretrain.models.layers import (
    MLP,
    Activation,
    Attention,
    Block,
    Norm,
    Positions,
    PostNormBlock,
    Rotary,
    activate,
    make_norm,
    rotary,
)
from pretrain.registry import register


class Order(StrEnum):
    """Where a block normalises."""

    post = "post"  # the sum of the residual stream and a branch (BERT)
    pre = "pre"  # the input of a branch, and once more after the last block (ModernBERT)


@register("model", "encoder")
@dataclass(kw_only=True)
class EncoderConfig:
    """`model=encoder`: the defaults are BERT's (Devlin et al. 2019); presets are files in conf/model."""

    max_seq_len: int  # tokens a sequence may have; owned by data.seq_len
    width: int = 768  # of the residual stream, D
    layers: int = 12  # blocks, L
    heads: int = 12  # H
    mlp_width: int | None = None  # hidden width of the MLP; null: 4 * width
    order: Order = Order.post  # where a block normalises: post or pre
    norm_eps: float = 1e-12  # added to the variance
    activation: Activation = Activation.gelu  # of the MLP: gelu, gelu_tanh, swiglu or geglu
    positions: Positions = Positions.learned  # how it knows where a token stands: learned or rotary
    position_offset: int = 0  # row of the first position's vector; RoBERTa's is 2
    rope_theta: float = 160_000.0  # base of the rotary frequencies where a layer sees all keys
    local_rope_theta: float = 10_000.0  # base of the rotary frequencies under a window
    token_types: int = 2  # kinds of segments, each with a vector of its own; 0: none
    bias: bool = True  # biases in projections and layer norms; the one on the logits is always there
    tie_embeddings: bool = True  # the head is the embedding
    window: int | None = None  # keys a query sees up to itself, and as many after it, in tokens; null: all
    global_every: int | None = None  # with a window, layers 0, n, 2n, ... see all keys; null: none does
    dropout: float = 0.0  # probability, of embeddings and residual branches
    attention_dropout: float = 0.0  # probability, of attention weights; sdpa and eager only
    init: Init = Init.bert  # scheme of the initial weights: bert, modernbert, gpt2 or olmo2
    init_std: float = 0.02  # standard deviation of initial matrices

    def __post_init__(self) -> None:
        for key in ("max_seq_len", "width", "layers", "heads", "mlp_width", "window", "global_every"):
            value = getattr(self, key)
            check(value is None or value >= 1, f"model.{key}", value, "must be at least 1")
        for key in ("position_offset", "token_types"):
            check(getattr(self, key) >= 0, f"model.{key}", getattr(self, key), "must not be negative")
        check(self.width % self.heads == 0, "model.heads", self.heads, f"must divide model.width={self.width}")
        rule = "belongs to decoders; choose learned or rotary"
        check(self.positions is not Positions.sinusoidal, "model.positions", self.positions.value, rule)
        if self.positions is Positions.rotary:
            rule = f"rotates pairs of coordinates, but a head's width is {self.head_width}"
            check(self.head_width % 2 == 0, "model.positions", self.positions.value, rule)
            rule = "belongs to learned positions; set 0"
            check(self.position_offset == 0, "model.position_offset", self.position_offset, rule)
        for key in ("norm_eps", "rope_theta", "local_rope_theta", "init_std"):
            check(getattr(self, key) > 0, f"model.{key}", getattr(self, key), "must be positive")
        for key in ("dropout", "attention_dropout"):
            check(0 <= getattr(self, key) < 1, f"model.{key}", getattr(self, key), "must lie in [0, 1)")
        rule = "means something only beside model.window; set it or leave this null"
        check(self.global_every is None or self.window is not None, "model.global_every", self.global_every, rule)

    @property
    def causal(self) -> bool:
        """Tokens see both sides."""
        return False

    @property
    def head_width(self) -> int:
        """Width of one attention head, E."""
        return self.width // self.heads

    @property
    def hidden_width(self) -> int:
        """Hidden width of the MLP; a gated one has two projections of it."""
        return 4 * self.width if self.mlp_width is None else self.mlp_width

    def layer_window(self, layer: int) -> int | None:
        """Return the window of a layer in tokens, None where it sees all keys."""
        return None if self.global_every is not None and layer % self.global_every == 0 else self.window

    def make_norm(self) -> nn.Module:
        """Return a layer norm over the width."""
        return make_norm(Norm.layernorm, self.width, self.norm_eps, self.bias)

    def build(self, *, vocab_size: int, attend: Attend, head: bool = True) -> Encoder:
        """Return the model, with or without its head; call it under `torch.device("meta")`."""
        return Encoder(self, vocab_size=vocab_size, attend=attend, head=head)


class Encoder(EncoderModel):
    """Embeddings with their norm, blocks, a last norm where blocks do not end in one, and the head's transform."""

    def __init__(self, config: EncoderConfig, *, vocab_size: int, attend: Attend, head: bool = True) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.embedding = nn.Embedding(vocab_size, width)
        if config.positions is Positions.learned:
            self.position_embedding = nn.Embedding(config.max_seq_len + config.position_offset, width)
        if config.token_types:
            self.type_embedding = nn.Embedding(config.token_types, width)
        self.embedding_norm = config.make_norm()
        self.blocks = nn.ModuleList(_block(config, layer, attend) for layer in range(config.layers))
        self.final_norm = config.make_norm() if config.order is Order.pre else nn.Identity()
        if head:
            self.transform = Transform(config)
            self.head = Head(vocab_size, None if config.tie_embeddings else width)

    def forward(self, tokens: Tensor, positions: Tensor, layout: Layout, segments: Tensor | None = None) -> Tensor:
        """Return the final hidden states (N, D)."""
        config = self.config
        x = self.embedding(tokens)
        if config.positions is Positions.learned:
            x = x + self.position_embedding(positions + config.position_offset)
        if config.token_types:
            x = x + self.type_embedding(torch.zeros_like(tokens) if segments is None else segments)
        x = F.dropout(self.embedding_norm(x), config.dropout, self.training)
        tables = self._tables(positions)
        for layer, block in enumerate(self.blocks):
            x = block(x, layout, tables[config.layer_window(layer) is None])
        return self.final_norm(x)

    def _tables(self, positions: Tensor) -> tuple[Rotary | None, Rotary | None]:
        """Return the rotations of layers that see a window, and of those that see all keys."""
        config = self.config
        if config.positions is not Positions.rotary:
            return None, None
        everywhere = rotary(positions, config.head_width, config.rope_theta)
        if config.window is None:
            return None, everywhere
        return rotary(positions, config.head_width, config.local_rope_theta), everywhere

    def head_input(self, hidden: Tensor) -> Tensor:
        """Return the transformed hidden states (M, D)."""
        return self.transform(hidden)

    def head_weight(self) -> Tensor:
        """Return the vocabulary projection (V, D): the embedding itself where tied."""
        return self.embedding.weight if self.config.tie_embeddings else self.head.weight

    def head_bias(self) -> Tensor:
        """Return what is added to the logits, (V,)."""
        return self.head.bias

    def initial(self, name: str) -> Initial:
        """Return how a parameter begins by the configured scheme (see `Init`); there are no buffers."""
        residual = ("attention.out.weight", "mlp.down.weight", "transform.dense.weight")
        parameter, layers = self.get_parameter(name), self.config.layers
        return scheme(
            self.config.init, name, ndim=parameter.ndim, std=self.config.init_std, residual=residual, layers=layers
        )

    def flops_per_token(self, seq_len: float, head_share: float = 1.0) -> float:
        """Return the operations of one token, forward and backward, by the convention of `Decoder.flops_per_token`.

        `head_share` is the share of tokens that the head's transform and the vocabulary projection see.
        """
        config = self.config
        matrices = sum(p.numel() for p in self.blocks.parameters() if p.ndim == 2)
        head = head_share * (self.transform.dense.weight.numel() + self.head_weight().numel()) if head_share else 0.0
        # A window reaches as far to the right as to the left, and counts the token itself once.
        windows = (config.layer_window(layer) for layer in range(config.layers))
        keys = sum(seq_len if window is None else min(2 * window - 1, seq_len) for window in windows)
        return 6.0 * (matrices + head) + 12.0 * config.width * keys


class Transform(nn.Module):
    """What stands between hidden states and the vocabulary projection: a layer, its nonlinearity, a norm."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.width, config.width, bias=config.bias)
        self.activation = Activation.gelu if config.activation.gated else config.activation
        self.norm = config.make_norm()

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (M, D) to (M, D)."""
        return self.norm(activate(self.activation, self.dense(hidden)))


class Head(nn.Module):
    """The bias on the logits, and the vocabulary projection where the embedding is not it."""

    def __init__(self, vocab_size: int, width: int | None) -> None:
        super().__init__()
        if width is not None:
            self.weight = nn.Parameter(torch.empty(vocab_size, width))
        self.bias = nn.Parameter(torch.empty(vocab_size))


def _block(config: EncoderConfig, layer: int, attend: Attend) -> Block:
    attention = Attention(
        width=config.width,
        heads=config.heads,
        kv_heads=config.heads,
        bias=config.bias,
        dropout=config.attention_dropout,
        causal=False,
        window=config.layer_window(layer),
        attend=attend,
    )
    # The norm of the embeddings is the first branch's norm already.
    normalised = config.order is Order.pre and layer == 0
    kind = PostNormBlock if config.order is Order.post else Block
    return kind(
        attention_norm=nn.Identity() if normalised else config.make_norm(),
        attention=attention,
        mlp_norm=config.make_norm(),
        mlp=MLP(width=config.width, hidden=config.hidden_width, activation=config.activation, bias=config.bias),
        dropout=config.dropout,
    )

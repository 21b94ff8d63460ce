"""The decoder-only transformer: GPT-2, Llama and what lies between them.

Holds the architecture and its dataclass; blocks are in `layers`, kernels in `attention/`. Letters: `models/base.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.errors import check
from pretrain.models.base import Attend, Layout, Model
from pretrain.models.init import Init, Initial, scheme
from pretrain.models.layers import (
    MLP,
    Activation,
    Attention,
    Block,
    KeyValueCache,
    Norm,
    Positions,
    make_norm,
    rotary,
    sinusoids,
)
from pretrain.registry import register


@register("model", "decoder")
@dataclass(kw_only=True)
class DecoderConfig:
    """`model=decoder`: the defaults are GPT-2's; presets are files in conf/model."""

    max_seq_len: int  # tokens a sequence may have; owned by data.seq_len
    width: int = 768  # of the residual stream, D
    layers: int = 12  # blocks, L
    heads: int = 12  # query heads, H
    kv_heads: int | None = None  # key-value heads, K; null: as many as heads
    mlp_width: int | None = None  # hidden width of the MLP; null: 4 * width
    norm: Norm = Norm.layernorm  # before each branch and after the last block: layernorm or rmsnorm
    norm_eps: float = 1e-5  # added to the variance
    activation: Activation = Activation.gelu_tanh  # of the MLP: gelu, gelu_tanh, swiglu or geglu
    positions: Positions = Positions.learned  # how it knows where a token stands: learned, sinusoidal or rotary
    rope_theta: float = 10_000.0  # base of the rotary frequencies
    bias: bool = True  # biases in projections and layer norms
    tie_embeddings: bool = True  # the head is the embedding
    window: int | None = None  # keys a query sees up to itself, in tokens; null: all
    global_every: int | None = None  # with a window, layers 0, n, 2n, ... see all keys; null: none does
    dropout: float = 0.0  # probability, of embeddings and residual branches
    attention_dropout: float = 0.0  # probability, of attention weights; sdpa and eager only
    init: Init = Init.gpt2  # scheme of the initial weights: gpt2, olmo2, bert or modernbert
    init_std: float = 0.02  # standard deviation of initial matrices

    def __post_init__(self) -> None:
        for key in ("max_seq_len", "width", "layers", "heads", "kv_heads", "mlp_width", "window", "global_every"):
            value = getattr(self, key)
            check(value is None or value >= 1, f"model.{key}", value, "must be at least 1")
        check(self.width % self.heads == 0, "model.heads", self.heads, f"must divide model.width={self.width}")
        check(self.heads % self.num_kv_heads == 0, "model.kv_heads", self.kv_heads, f"must divide {self.heads} heads")
        paired = self.head_width if self.positions is Positions.rotary else self.width
        check(
            self.positions is Positions.learned or paired % 2 == 0,
            "model.positions",
            self.positions.value,
            f"needs pairs of coordinates, but the width of a head ({self.head_width}) or of the model is odd",
        )
        for key in ("norm_eps", "rope_theta", "init_std"):
            check(getattr(self, key) > 0, f"model.{key}", getattr(self, key), "must be positive")
        for key in ("dropout", "attention_dropout"):
            check(0 <= getattr(self, key) < 1, f"model.{key}", getattr(self, key), "must lie in [0, 1)")
        check(
            self.global_every is None or self.window is not None,
            "model.global_every",
            self.global_every,
            "means something only beside model.window; set it or leave this null",
        )

    @property
    def causal(self) -> bool:
        """Tokens see those before them only."""
        return True

    @property
    def head_width(self) -> int:
        """Width of one attention head, E."""
        return self.width // self.heads

    @property
    def num_kv_heads(self) -> int:
        """Key-value heads, K."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def hidden_width(self) -> int:
        """Hidden width of the MLP; a gated one has two projections of it."""
        return 4 * self.width if self.mlp_width is None else self.mlp_width

    def layer_window(self, layer: int) -> int | None:
        """Return the window of a layer in tokens, None where it sees all keys."""
        return None if self.global_every is not None and layer % self.global_every == 0 else self.window

    def build(self, *, vocab_size: int, attend: Attend, head: bool = True) -> Decoder:
        """Return the model, with or without its head; call it under `torch.device("meta")`."""
        return Decoder(self, vocab_size=vocab_size, attend=attend, head=head)


class Decoder(Model):
    """Embedding, blocks, final norm. The vocabulary projection is the objective's to apply (see `head_weight`)."""

    def __init__(self, config: DecoderConfig, *, vocab_size: int, attend: Attend, head: bool = True) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(vocab_size, config.width)
        if config.positions is Positions.learned:
            self.position_embedding = nn.Embedding(config.max_seq_len, config.width)
        self.blocks = nn.ModuleList(_block(config, layer, attend) for layer in range(config.layers))
        self.final_norm = make_norm(config.norm, config.width, config.norm_eps, config.bias)
        if head and not config.tie_embeddings:
            self.head = nn.Linear(config.width, vocab_size, bias=False)

    def forward(
        self, tokens: Tensor, positions: Tensor, layout: Layout, caches: Sequence[KeyValueCache] | None = None
    ) -> Tensor:
        """Return the final hidden states (N, D).

        With `caches`, one a layer, the tokens are the newest of their sequences: the layout's keys count cached
        positions too, and every cache grows by these tokens.
        """
        config = self.config
        x = self.embedding(tokens)
        if config.positions is Positions.learned:
            x = x + self.position_embedding(positions)
        elif config.positions is Positions.sinusoidal:
            x = x * config.width**0.5 + sinusoids(positions, config.width).to(x.dtype)
        x = F.dropout(x, config.dropout, self.training)
        rotated = config.positions is Positions.rotary
        tables = rotary(positions, config.head_width, config.rope_theta) if rotated else None
        for layer, block in enumerate(self.blocks):
            x = block(x, layout, tables, caches[layer] if caches else None)
        return self.final_norm(x)

    @property
    def max_positions(self) -> int | None:
        """Positions that the model has vectors for; None where positions are computed."""
        return self.config.max_seq_len if self.config.positions is Positions.learned else None

    def head_weight(self) -> Tensor:
        """Return the vocabulary projection (V, D): the embedding itself where tied."""
        return self.embedding.weight if self.config.tie_embeddings else self.head.weight

    def initial(self, name: str) -> Initial:
        """Return how a parameter begins by the configured scheme (see `Init`); there are no buffers."""
        residual = ("attention.out.weight", "mlp.down.weight")
        ndim, std, layers = self.get_parameter(name).ndim, self.config.init_std, self.config.layers
        return scheme(self.config.init, name, ndim=ndim, std=std, residual=residual, layers=layers)

    def flops_per_token(self, seq_len: float, head_share: float = 1.0) -> float:
        """Return the floating-point operations of one token, forward and backward (PaLM, appendix B, 2022).

        6 a parameter of every matrix product (the head's included, tied or not; the embedding's look-up is none),
        and 12 H E a layer and visible key. All keys in the window or sequence count as visible, those after the
        query too: the convention of PaLM and of torch's counter, twice what a causal kernel has to compute.
        """
        matrices = sum(p.numel() for p in self.blocks.parameters() if p.ndim == 2)
        head = head_share * self.head_weight().numel() if head_share else 0.0
        windows = (self.config.layer_window(layer) for layer in range(self.config.layers))
        keys = sum(seq_len if window is None else min(window, seq_len) for window in windows)
        return 6.0 * (matrices + head) + 12.0 * self.config.width * keys


def _block(config: DecoderConfig, layer: int, attend: Attend) -> Block:
    attention = Attention(
        width=config.width,
        heads=config.heads,
        kv_heads=config.num_kv_heads,
        bias=config.bias,
        dropout=config.attention_dropout,
        causal=True,
        window=config.layer_window(layer),
        attend=attend,
    )
    return Block(
        attention_norm=make_norm(config.norm, config.width, config.norm_eps, config.bias),
        attention=attention,
        mlp_norm=make_norm(config.norm, config.width, config.norm_eps, config.bias),
        mlp=MLP(width=config.width, hidden=config.hidden_width, activation=config.activation, bias=config.bias),
        dropout=config.dropout,
    )

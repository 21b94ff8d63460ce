"""The decoder-only transformer: GPT-2, Llama and what lies between them.

Holds the architecture and its dataclass; shared settings and blocks are in `network`, kernels in `attention/`. Letters
of shapes: `models/base.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.errors import check
from pretrain.models.base import Attend, Layout, Model, ModelKind
from pretrain.models.generation.cache import KeyValueCache
from pretrain.models.init import Initial
from pretrain.models.layers import Norm, Positions, make_norm, rotary, sinusoids
from pretrain.models.network import NetworkConfig
from pretrain.registry import register


@register("model", "decoder")
@dataclass(kw_only=True)
class DecoderConfig(NetworkConfig):
    """`model=decoder`: the defaults are GPT-2's; presets are files in conf/model."""

    kind = ModelKind.causal

    kv_heads: int | None = None  # key-value heads, K; null: as many as heads
    norm: Norm = Norm.layernorm  # before each branch and after the last block: layernorm or rmsnorm

    def __post_init__(self) -> None:
        super().__post_init__()
        rule = "is not for decoders; choose learned, sinusoidal or rotary"
        allowed = self.positions not in (Positions.relative, Positions.disentangled)
        check(allowed, "model.positions", self.positions.value, rule)
        check(self.kv_heads is None or self.kv_heads >= 1, "model.kv_heads", self.kv_heads, "must be at least 1")
        check(self.heads % self.num_kv_heads == 0, "model.kv_heads", self.kv_heads, f"must divide {self.heads} heads")

    @property
    def num_kv_heads(self) -> int:
        """Key-value heads, K."""
        return self.heads if self.kv_heads is None else self.kv_heads

    def make_norm(self) -> nn.Module:
        """Return a normalisation layer over the width."""
        return make_norm(self.norm, self.width, self.norm_eps, self.bias)

    def build(self, *, vocab_size: int, attend: Attend, head: bool = True) -> Decoder:
        """Return the model, with or without its head; call it under `torch.device("meta")`."""
        return Decoder(self, vocab_size=vocab_size, attend=attend, head=head)


class Decoder(Model):
    """Embedding, blocks, final norm. The objective applies the vocabulary projection (see `head_weight`)."""

    def __init__(self, config: DecoderConfig, *, vocab_size: int, attend: Attend, head: bool = True) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(vocab_size, config.width)
        if config.positions is Positions.learned:
            self.position_embedding = nn.Embedding(config.max_seq_len, config.width)
        self.blocks = nn.ModuleList(config.make_block(layer, attend) for layer in range(config.layers))
        self.final_norm = config.make_norm()
        if head and not config.tie_embeddings:
            self.head = nn.Linear(config.width, vocab_size, bias=False)

    def forward(
        self, tokens: Tensor, positions: Tensor, layout: Layout, caches: Sequence[KeyValueCache] | None = None
    ) -> Tensor:
        """Return the final hidden states (N, D).

        With `caches`, one a layer, the tokens are the newest of their sequences: they see what the caches hold, which
        the layout does not count, and every cache grows by them.
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
        """Return the distribution of a parameter by the configured scheme (see `Init`); there are no buffers."""
        return self.config.initial(name, self.get_parameter(name).ndim)

    def flops_per_token(self, seq_len: float, head_share: float = 1.0) -> float:
        """Return the operations of one token (see `NetworkConfig`); tied or not, the head is a matrix product."""
        head = [self.head_weight()] if head_share else []
        return self.config.flops_per_token(self, head, head_share, seq_len)

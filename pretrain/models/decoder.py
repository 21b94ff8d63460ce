"""The decoder-only transformer: GPT-2, Llama and what lies between them.

Holds the architecture and its dataclass; shared settings and blocks are in `network`, kernels in `attention/`. Letters
of shapes: `models/base.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.errors import check
from pretrain.models.base import Attend, Layout, Model, ModelKind
from pretrain.models.generation.cache import KeyValueCache
from pretrain.models.init import Initial
from pretrain.models.layers import Embedding, Norm, Order, Positions, QKNorm, make_norm, sinusoids
from pretrain.models.network import NetworkConfig
from pretrain.models.plans import make_plans
from pretrain.models.width_scaling import UNSCALED, WidthScaling
from pretrain.registry import register

MUP = ("mup_base_width", "mup_base_head_width")  # settings whose factors exports take into the weights


@register("model", "decoder")
@dataclass(kw_only=True)
class DecoderConfig(NetworkConfig):
    """`model=decoder`: the defaults are GPT-2's; presets are files in conf/model."""

    kind = ModelKind.causal

    kv_heads: int | None = None  # key-value heads, K; null: as many as heads
    attention_width: int | None = None  # of all query heads together; null: width
    qkv_bias: bool | None = None  # biases of queries, keys and values; null: as bias says (Qwen 2 has these alone)
    qk_norm: QKNorm = QKNorm.none  # of queries and keys: none, head or projection
    score_width: int | None = None  # scores are divided by its root; null: the width of a head (Gemma 3 27B: 168)
    norm: Norm = Norm.layernorm  # layernorm, rmsnorm or zero_centered_rmsnorm
    embedding_scale: bool = False  # multiplies token vectors by the root of the width (Gemma)
    mup_base_width: int | None = None  # muP: width at which settings were found, to serve this one; null: no muP
    mup_base_head_width: int | None = None  # of a head at that width; null: the same, wider models have more heads

    def __post_init__(self) -> None:
        super().__post_init__()
        rule = "is not for decoders; choose learned, sinusoidal or rotary"
        allowed = self.positions not in (Positions.relative, Positions.disentangled)
        check(allowed, "model.positions", self.positions.value, rule)
        rule = "is not for decoders; choose pre, output, sandwich or parallel"
        check(self.order is not Order.post, "model.order", self.order.value, rule)
        for key in ("kv_heads", "attention_width", "score_width", "mup_base_width", "mup_base_head_width"):
            value = getattr(self, key)
            check(value is None or value >= 1, f"model.{key}", value, "must be at least 1")
        check(self.heads % self.num_kv_heads == 0, "model.kv_heads", self.kv_heads, f"must divide {self.heads} heads")
        self._check_mup()

    def _check_mup(self) -> None:
        """Raise `ConfigError` for settings that muP does not go with."""
        base, base_head = self.mup_base_width, self.mup_base_head_width
        rule = "means something only beside model.mup_base_width; set it or leave this null"
        check(base is not None or base_head is None, "model.mup_base_head_width", base_head, rule)
        rule = f"must be {self.head_width}, or null, where model.width is model.mup_base_width"
        alike = base_head in (None, self.head_width)
        check(alike or base != self.width, "model.mup_base_head_width", base_head, rule)
        grows = "multiplies embeddings by the root of the width, which model.mup_base_width must not let grow"
        check(base is None or not self.embedding_scale, "model.embedding_scale", True, f"{grows}; set false")
        rule = f"{grows}; choose learned or rotary"
        fits = base is None or self.positions is not Positions.sinusoidal
        check(fits, "model.positions", self.positions.value, rule)

    def nulls(self) -> dict[str, Any]:
        """Return what settings stand for where they are null, by their names."""
        widths = {"attention_width": self.width, "score_width": self.head_width}
        return {**super().nulls(), **widths, "kv_heads": self.heads, "qkv_bias": self.bias}

    def idle(self) -> set[str]:
        """Return the names of settings that have no effect beside the others."""
        scaled = self.positions is Positions.sinusoidal  # in any case
        names = super().idle() | ({"embedding_scale"} if scaled else set())
        return names | (set(MUP) if self.width_scaling == UNSCALED else set())

    @property
    def num_kv_heads(self) -> int:
        """Key-value heads, K."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def all_heads_width(self) -> int:
        """Width of all query heads together, H E."""
        return self.width if self.attention_width is None else self.attention_width

    @property
    def has_qkv_bias(self) -> bool:
        """Whether projections to queries, keys and values have a bias."""
        return self.bias if self.qkv_bias is None else self.qkv_bias

    @property
    def score_scale(self) -> float | None:
        """What attention multiplies scores by; None: 1 / sqrt(E)."""
        factor = self.width_scaling.scores
        if self.score_width is None and factor == 1:
            return None
        return (self.score_width or self.head_width) ** -0.5 * factor

    @property
    def width_scaling(self) -> WidthScaling:
        """What muP multiplies (see `WidthScaling`)."""
        if self.mup_base_width is None:
            return UNSCALED
        base_head = self.mup_base_head_width or self.head_width
        return WidthScaling(width=self.mup_base_width / self.width, head_width=base_head / self.head_width)

    def make_norm(self, width: int | None = None) -> nn.Module:
        """Return a normalisation layer over a width, by default the model's."""
        return make_norm(self.norm, width or self.width, self.norm_eps, self.bias)

    def make_qk_norms(self) -> tuple[nn.Module, nn.Module] | None:
        """Return the norms of the queries and the keys of a layer, None for none."""
        if self.qk_norm is QKNorm.none:
            return None
        heads = (1, 1) if self.qk_norm is QKNorm.head else (self.heads, self.num_kv_heads)
        q_norm, k_norm = (self.make_norm(count * self.head_width) for count in heads)
        return q_norm, k_norm

    def initial(self, name: str, ndim: int) -> Initial:
        """Return the distribution of a parameter of this name and number of dimensions, by the scheme `init`."""
        if ndim == 1:
            return Initial() if self.norm is Norm.zero_centered_rmsnorm else super().initial(name, ndim)
        initial = super().initial(name, ndim)
        return initial._replace(std=initial.std * self.width_scaling.init) if name.startswith("blocks.") else initial

    def build(self, *, vocab_size: int, attend: Attend, head: bool = True) -> Decoder:
        """Return the model, with or without its head; call it under `torch.device("meta")`."""
        return Decoder(self, vocab_size=vocab_size, attend=attend, head=head)


class Decoder(Model):
    """Embedding, blocks, final norm. The objective applies the vocabulary projection (see `head_weight`)."""

    def __init__(self, config: DecoderConfig, *, vocab_size: int, attend: Attend, head: bool = True) -> None:
        super().__init__()
        self.config = config
        self.width_scaling = config.width_scaling
        self.embedding = Embedding(vocab_size, config.width)
        if config.positions is Positions.learned:
            self.position_embedding = Embedding(config.max_seq_len, config.width)
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
        if config.embedding_scale or config.positions is Positions.sinusoidal:
            x = x * config.width**0.5
        if config.positions is Positions.learned:
            x = x + self.position_embedding(positions)
        elif config.positions is Positions.sinusoidal:
            x = x + sinusoids(positions, config.width).to(x.dtype)
        x = F.dropout(x, config.dropout, self.training)
        rotations = config.rotations(positions)
        if caches is None:
            make_plans(self.blocks, x, layout)
        for layer, block in enumerate(self.blocks):
            x = block(x, layout, rotations[layer], caches[layer] if caches else None)
        x = self.final_norm(x)
        factor = self.width_scaling.output
        return x if factor == 1 else x * factor

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

"""The bidirectional encoder: BERT, RoBERTa, DistilBERT, ELECTRA, DeBERTa, ModernBERT and what lies between them.

Holds the architecture, its dataclass and the layers of its heads; shared settings and blocks are in `network`, kernels
in `attention/`. Letters of shapes: `models/base.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.errors import check
from pretrain.models.attention.disentangled import DistanceVectors, LogBuckets
from pretrain.models.base import Attend, EncoderModel, Layout, ModelKind
from pretrain.models.disentangled_attention import DisentangledAttention
from pretrain.models.init import Init, Initial
from pretrain.models.layers import Activation, Attention, Embedding, Norm, Order, Positions, activate, make_norm
from pretrain.models.network import NetworkConfig, embeddings_learn, learns, matrix_flops
from pretrain.models.plans import make_plans
from pretrain.registry import register

# Settings that disentangled positions alone have.
_OF_DISTANCES = {
    *("buckets", "max_distance", "content_to_position"),
    *("position_to_content", "shared_projections", "distance_norm"),
}


@register("model", "encoder")
@dataclass(kw_only=True)
class EncoderConfig(NetworkConfig):
    """`model=encoder`: the defaults are BERT's (Devlin et al. 2019); presets are files in conf/model."""

    kind = ModelKind.bidirectional

    norm_eps: float = 1e-12
    activation: Activation = Activation.gelu
    positions: Positions = Positions.learned  # how it knows where a token stands: learned, rotary or disentangled
    rope_theta: float = 160_000.0  # base of the rotary frequencies where a layer sees all keys
    bias: bool = True  # biases in projections and layer norms; the one on the logits is always there
    local_rope_theta: float | None = 10_000.0  # the same in layers with a window, never scaled; null: as all others
    order: Order = Order.post  # what a block normalises: post or pre
    window: int | None = None  # keys a query sees up to itself, and as many after it, in tokens; null: all
    init: Init = Init.bert

    position_offset: int = 0  # row of the first position's vector; RoBERTa's is 2
    token_types: int = 2  # kinds of segments, each with a vector of its own; 0: none
    buckets: int | None = 256  # of distances on either side, with positions=disentangled; null: one for each distance
    max_distance: int = 512  # tokens, with positions=disentangled; from there on all on one side share a bucket
    content_to_position: bool = True  # scores have a term of the query and the distance (DeBERTa, He et al. 2021)
    position_to_content: bool = True  # scores have a term of the key and the distance (DeBERTa, He et al. 2021)
    shared_projections: bool = True  # of tokens and of distances (DeBERTa v3, He et al. 2023); false: each its own
    distance_norm: bool = True  # normalises the vectors of distances (DeBERTa v3)
    embedding_width: int | None = None  # of embeddings, which a projection widens (Clark et al. 2020); null: width

    def __post_init__(self) -> None:
        super().__post_init__()
        own, rule = self.embedding_width, f"at least 1 and other than model.width={self.width}; null is that one"
        check(own is None or 1 <= own != self.width, "model.embedding_width", own, rule)
        rule = "a projection between the embeddings' norm and the blocks needs model.order=post; leave it null"
        check(own is None or self.order is Order.post, "model.embedding_width", own, rule)
        for key in ("position_offset", "token_types"):
            check(getattr(self, key) >= 0, f"model.{key}", getattr(self, key), "must not be negative")
        rule = "is not for encoders; choose learned, rotary or disentangled"
        allowed = self.positions not in (Positions.sinusoidal, Positions.relative)
        check(allowed, "model.positions", self.positions.value, rule)
        offset, learned = self.position_offset, self.positions is Positions.learned
        check(learned or offset == 0, "model.position_offset", offset, "belongs to learned positions; set 0")
        orders = (Order.post, Order.pre)
        check(self.order in orders, "model.order", self.order.value, "is not for encoders; choose post or pre")
        if self.disentangled:
            self._check_distances()

    def _check_distances(self) -> None:
        """Check the settings of disentangled positions."""
        buckets = self.buckets
        even = buckets is None or (buckets >= 2 and buckets % 2 == 0)
        check(even, "model.buckets", buckets, "must be even: half of them have one distance each, the others more")
        least = (buckets or 0) // 2 + 2  # from there on buckets have several distances
        check(self.max_distance >= least, "model.max_distance", self.max_distance, f"must be at least {least}")
        rule = "scores need a term with distances; set it, or model.content_to_position, to true"
        terms = self.content_to_position or self.position_to_content
        check(terms, "model.position_to_content", self.position_to_content, rule)

    def idle(self) -> set[str]:
        """Return the names of settings that have no effect beside the others."""
        return super().idle() | (set() if self.disentangled else _OF_DISTANCES)

    @property
    def disentangled(self) -> bool:
        """Whether tokens and distances are vectors apart, and scores have terms of both."""
        return self.positions is Positions.disentangled

    @property
    def distances(self) -> LogBuckets:
        """How distances share vectors, with disentangled positions."""
        return LogBuckets(self.buckets, self.max_distance)

    @property
    def score_bias(self) -> str | None:
        """The setting by which attention adds a bias to scores (see `ModelConfig`)."""
        return "model.positions=disentangled" if self.disentangled else None

    def make_attention(self, **parts: Any) -> Attention:
        """Return the attention of a layer, of these arguments."""
        if not self.disentangled:
            return super().make_attention(**parts)
        return DisentangledAttention(
            content_to_position=self.content_to_position,
            position_to_content=self.position_to_content,
            shared=self.shared_projections,
            position_dropout=self.dropout,
            **parts,
        )

    @property
    def embedded_width(self) -> int:
        """Width of the embeddings, and of what the vocabulary projection multiplies."""
        return self.width if self.embedding_width is None else self.embedding_width

    def make_embedding_norm(self) -> nn.Module:
        """Return a normalisation layer over the width of the embeddings."""
        return make_norm(Norm.layernorm, self.embedded_width, self.norm_eps, self.bias)

    def build(self, *, vocab_size: int, attend: Attend, head: bool = True) -> Encoder:
        """Return the model, with or without its head; call it under `torch.device("meta")`."""
        return Encoder(self, vocab_size=vocab_size, attend=attend, head=head)


class Encoder(EncoderModel):
    """Embeddings with their norm, blocks, a last norm where blocks do not end in one, and the head's transform.

    Embeddings may be narrower than the blocks, which saves parameters where there are many tokens (ALBERT, Lan et al.
    2020, section 3.1; ELECTRA, Clark et al. 2020, appendix A): a projection leads from them to the blocks, and the
    transform back, so that the vocabulary projection can be the embedding.
    """

    def __init__(self, config: EncoderConfig, *, vocab_size: int, attend: Attend, head: bool = True) -> None:
        super().__init__()
        self.config = config
        width = config.embedded_width
        self.embedding = Embedding(vocab_size, width)
        if config.positions is Positions.learned:
            self.position_embedding = Embedding(config.max_seq_len + config.position_offset, width)
        if config.token_types:
            self.type_embedding = Embedding(config.token_types, width)
        if config.disentangled:
            self.distance_embedding = Embedding(2 * config.distances.side, config.width)
            self.distance_embedding_norm = config.make_norm() if config.distance_norm else nn.Identity()
        self.embedding_norm = config.make_embedding_norm()
        if config.embedding_width is not None:
            self.embedding_projection = nn.Linear(width, config.width, bias=config.bias)
        self.blocks = nn.ModuleList(config.make_block(layer, attend) for layer in range(config.layers))
        if config.order is Order.pre:  # the norm of the embeddings is the first branch's norm already
            self.blocks[0].attention_norm = nn.Identity()
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
        if config.embedding_width is not None:
            x = self.embedding_projection(x)
        relative = self._distances(layout) if config.disentangled else None
        make_plans(self.blocks, x, layout, relative)
        for block, tables in zip(self.blocks, config.rotations(positions), strict=True):
            x = block(x, layout, tables, relative=relative)
        return self.final_norm(x)

    def _distances(self, layout: Layout) -> DistanceVectors:
        """Return the vectors of the distances that there are, which all layers share."""
        length = self.config.max_seq_len if self.whole_tables else layout.max_q
        found = DistanceVectors.of(self.distance_embedding.weight, self.config.distances, length)
        return found._replace(vectors=self.distance_embedding_norm(found.vectors))

    def head_input(self, hidden: Tensor) -> Tensor:
        """Return the transformed hidden states (M, D), or (M, `embedding_width`)."""
        return self.transform(hidden)

    def head_weight(self) -> Tensor:
        """Return the vocabulary projection (V, D), or (V, `embedding_width`): the embedding itself where tied."""
        return self.embedding.weight if self.config.tie_embeddings else self.head.weight

    def head_bias(self) -> Tensor:
        """Return what is added to the logits, (V,)."""
        return self.head.bias

    @property
    def width(self) -> int:
        return self.config.width

    def initial(self, name: str) -> Initial:
        """Return the distribution of a parameter by the configured scheme (see `Init`); there are no buffers."""
        return self.config.initial(name, self.get_parameter(name).ndim)

    def flops_per_token(self, seq_len: float, head_share: float = 1.0) -> float:
        """Return the operations of one token (see `NetworkConfig`).

        `head_share` is the share of tokens that pass through the head's transform and the vocabulary projection. What
        distances pass through is left out: it is as much for a pass of any number of tokens.
        """
        head = [self.transform.dense.weight, self.head_weight()] if head_share else []
        total = self.config.flops_per_token(self, head, head_share, seq_len)
        if self.config.embedding_width is not None:
            total += matrix_flops([self.embedding_projection.weight], reached=embeddings_learn(self))
        return total + self._position_flops(ceil(seq_len)) if self.config.disentangled else total

    def _position_flops(self, length: int) -> float:
        """Return the operations of one token's products with distances, in a sequence of `length` tokens."""
        rows, reached, total = len(self.config.distances.reached(length)), embeddings_learn(self), 0.0
        for block in self.blocks:
            reached = reached or learns(block.parameters())
            attention = block.attention
            assert isinstance(attention, DisentangledAttention)
            total += attention.position_flops(rows, reached=reached)
        return total


class Transform(nn.Module):
    """The layers between hidden states and the vocabulary projection: a projection, its nonlinearity, a norm."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.width, config.embedded_width, bias=config.bias)
        self.activation = Activation.gelu if config.activation.gated else config.activation
        self.norm = config.make_embedding_norm()

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (M, D) to (M, D), or to (M, `embedding_width`)."""
        return self.norm(activate(self.activation, self.dense(hidden)))


class Head(nn.Module):
    """The bias on the logits, and the vocabulary projection where the embedding is not it."""

    def __init__(self, vocab_size: int, width: int | None) -> None:
        super().__init__()
        if width is not None:
            self.weight = nn.Parameter(torch.empty(vocab_size, width))
        self.bias = nn.Parameter(torch.empty(vocab_size))


class Pooler(nn.Module):
    """BERT's layer between the first token's hidden state and classifiers of sequences (Devlin et al. 2019).

    Not part of the model, whose parameters all take part in every objective: objectives and tasks add it.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)

    def forward(self, first: Tensor) -> Tensor:
        """Map the hidden states of the first tokens of sequences (S, D) to (S, D)."""
        return torch.tanh(self.dense(first))

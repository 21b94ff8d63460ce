"""The encoder-decoder: the original Transformer, BART, Marian, T5 and what lies between them.

Holds the architecture and its dataclass; shared settings and blocks are in `network` and `layers`, kernels in
`attention/`. Letters of shapes: `models/base.py`, and Ns tokens of the source.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.errors import check
from pretrain.models.attention.relative import RelativeBias
from pretrain.models.base import Attend, EncoderDecoderModel, Layout, ModelKind, Stream
from pretrain.models.generation.cache import KeyValueCache, SourceCache
from pretrain.models.init import Init, Initial
from pretrain.models.layers import (
    MLP,
    Activation,
    Attention,
    Block,
    CrossAttention,
    CrossBlock,
    Embedding,
    Norm,
    Order,
    Positions,
    PostNormBlock,
    PostNormCrossBlock,
    SeenSource,
    make_norm,
    sinusoids,
)
from pretrain.models.network import NetworkConfig, embeddings_learn, learns, matrix_flops
from pretrain.models.plans import make_cross_plans, make_plans
from pretrain.registry import register


@register("model", "encoder_decoder")
@dataclass(kw_only=True)
class EncoderDecoderConfig(NetworkConfig):
    """`model=encoder_decoder`: the defaults are the base model's of Vaswani et al. 2017; presets are in conf/model."""

    kind = ModelKind.encoder_decoder

    max_seq_len: int = 1024  # tokens that either side may have; in pretraining owned by data.seq_len
    width: int = 512  # of the residual streams, D
    layers: int = 6  # blocks of the encoder
    heads: int = 8  # heads of every attention, H
    activation: Activation = Activation.relu
    positions: Positions = Positions.sinusoidal  # how it knows where a token stands: sinusoidal, learned or relative
    order: Order = Order.post  # what a block normalises: post or pre
    init: Init = Init.transformer

    decoder_layers: int | None = None  # blocks of the decoder; null: as many as the encoder's
    attention_width: int | None = None  # of all heads of one attention together; null: width
    attention_scale: bool = True  # scores are divided by the root of the width of a head; T5's are not
    norm: Norm = Norm.layernorm  # layernorm or rmsnorm
    embedding_norm: bool = False  # a norm of the embeddings on either side (BART)
    embedding_scale: bool = True  # multiplies token vectors by the root of the width
    position_offset: int = 0  # row of the first position's vector; BART's is 2
    buckets: int = 32  # of distances, with positions=relative; in the encoder half of them for keys after the query
    max_distance: int = 128  # tokens, with positions=relative; from there on all distances share a bucket
    head_scale: bool = False  # divides what the head multiplies by the root of the width (T5 1.0)
    head_bias: bool = False  # a bias on the logits
    mlp_dropout: float = 0.0  # probability, inside the MLP (T5, BART)

    def __post_init__(self) -> None:
        super().__post_init__()
        rule = "is not for encoder-decoders; choose sinusoidal, learned or relative"
        allowed = self.positions not in (Positions.rotary, Positions.disentangled)
        check(allowed, "model.positions", self.positions.value, rule)
        check(self.window is None, "model.window", self.window, "encoder-decoders see whole texts; set null")
        rule = "is not for encoder-decoders; choose post or pre"
        check(self.order in (Order.post, Order.pre), "model.order", self.order.value, rule)
        rule = "is not for encoder-decoders; choose layernorm or rmsnorm"
        check(self.norm in (Norm.layernorm, Norm.rmsnorm), "model.norm", self.norm.value, rule)
        for key in ("decoder_layers", "attention_width", "buckets", "max_distance"):
            value = getattr(self, key)
            check(value is None or value >= 1, f"model.{key}", value, "must be at least 1")
        offset, learned = self.position_offset, self.positions is Positions.learned
        check(offset >= 0, "model.position_offset", offset, "must not be negative")
        check(learned or offset == 0, "model.position_offset", offset, "belongs to learned positions; set 0")
        rule = "must be a multiple of 4: half of them for either side, half of those for single positions"
        check(self.buckets % 4 == 0, "model.buckets", self.buckets, rule)
        rule = f"must be above half of model.buckets={self.buckets}, the distances that have a bucket of their own"
        check(self.max_distance > self.buckets // 2, "model.max_distance", self.max_distance, rule)
        check(0 <= self.mlp_dropout < 1, "model.mlp_dropout", self.mlp_dropout, "must lie in [0, 1)")

    def nulls(self) -> dict[str, Any]:
        """Return what settings stand for where they are null, by their names."""
        return {**super().nulls(), "attention_width": self.width, "decoder_layers": self.layers}

    def idle(self) -> set[str]:
        """Return the names of settings that have no effect beside the others."""
        return super().idle() | (set() if self.positions is Positions.relative else {"buckets", "max_distance"})

    @property
    def score_bias(self) -> str | None:
        """The setting by which self-attention adds a bias to scores (see `ModelConfig`)."""
        return "model.positions=relative" if self.positions is Positions.relative else None

    @property
    def all_heads_width(self) -> int:
        """Width of all heads of one attention together, H E."""
        return self.width if self.attention_width is None else self.attention_width

    @property
    def num_decoder_layers(self) -> int:
        """Blocks of the decoder."""
        return self.layers if self.decoder_layers is None else self.decoder_layers

    def make_norm(self, width: int | None = None) -> nn.Module:
        """Return a normalisation layer over a width, by default the model's."""
        return make_norm(self.norm, width or self.width, self.norm_eps, self.bias)

    def encoder_block(self, attend: Attend) -> Block:
        """Return a block of the encoder."""
        return (Block if self.order is Order.pre else PostNormBlock)(**self._parts(attend, causal=False))

    def decoder_block(self, attend: Attend) -> CrossBlock:
        """Return a block of the decoder."""
        cross = CrossAttention(
            width=self.width,
            heads=self.heads,
            head_width=self.head_width,
            bias=self.bias,
            dropout=self.attention_dropout,
            scale=self.score_scale,
            attend=attend,
        )
        block = CrossBlock if self.order is Order.pre else PostNormCrossBlock
        return block(cross_norm=self.make_norm(), cross=cross, **self._parts(attend, causal=True))

    @property
    def score_scale(self) -> float | None:
        """What attention multiplies scores by; None: 1 / sqrt(E)."""
        return None if self.attention_scale else 1.0

    def _parts(self, attend: Attend, *, causal: bool) -> dict[str, Any]:
        """Return what blocks of both sides are made of."""
        attention = Attention(
            width=self.width,
            heads=self.heads,
            kv_heads=self.heads,
            head_width=self.head_width,
            bias=self.bias,
            qkv_bias=self.bias,
            qk_norms=None,
            dropout=self.attention_dropout,
            causal=causal,
            window=None,
            scale=self.score_scale,
            attend=attend,
        )
        mlp = MLP(
            width=self.width,
            hidden=self.hidden_width,
            activation=self.activation,
            bias=self.bias,
            dropout=self.mlp_dropout,
        )
        norms = {"attention_norm": self.make_norm(), "mlp_norm": self.make_norm()}
        return {"attention": attention, "mlp": mlp, "dropout": self.dropout, **norms}

    def initial(self, name: str, ndim: int) -> Initial:
        """Return the distribution of a parameter of this name and number of dimensions, by the scheme `init`."""
        t5 = self.init is Init.t5
        if ndim == 1 or not (t5 or self.init is Init.transformer):
            return super().initial(name, ndim)
        layer = name.removesuffix(".weight").rpartition(".")[2]
        if "embedding" in layer or layer == "head":
            return Initial(std=1.0 if t5 and layer == "embedding" else self.width**-0.5)
        return self._initial_t5(layer) if t5 else self._initial_transformer(layer)

    def _initial_transformer(self, layer: str) -> Initial:
        """By the two widths of a matrix; of a fused one, by those of each of its parts."""
        inner = self.hidden_width if layer in ("up", "down") else self.all_heads_width
        return Initial(std=(2 / (self.width + inner)) ** 0.5)

    def _initial_t5(self, layer: str) -> Initial:
        """By what a matrix reads; that of the queries by the width of a head, too, since scores are not scaled."""
        read = {"out": self.all_heads_width, "down": self.hidden_width}.get(layer, self.width)
        of_queries = (self.width * self.head_width) ** -0.5
        if layer == "q":
            return Initial(std=of_queries)
        first = (self.all_heads_width * self.width, of_queries) if layer == "qkv" else None
        return Initial(std=read**-0.5, first=first)

    def build(self, *, vocab_size: int, attend: Attend, head: bool = True) -> EncoderDecoder:
        """Return the model, with or without its head; call it under `torch.device("meta")`."""
        return EncoderDecoder(self, vocab_size=vocab_size, attend=attend, head=head)


class EncoderDecoder(EncoderDecoderModel):
    """Shared embeddings, the blocks of the encoder, those of the decoder, and the norms that they end with."""

    def __init__(self, config: EncoderDecoderConfig, *, vocab_size: int, attend: Attend, head: bool = True) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.embedding = Embedding(vocab_size, width)
        if config.positions is Positions.learned:
            rows = config.max_seq_len + config.position_offset
            self.encoder_position_embedding = Embedding(rows, width)
            self.decoder_position_embedding = Embedding(rows, width)
        if config.positions is Positions.relative:
            self.encoder_distance_embedding = Embedding(config.buckets, config.heads)
            self.decoder_distance_embedding = Embedding(config.buckets, config.heads)
        if config.embedding_norm:
            self.encoder_embedding_norm, self.decoder_embedding_norm = config.make_norm(), config.make_norm()
        encoder = [config.encoder_block(attend) for _ in range(config.layers)]
        decoder = [config.decoder_block(attend) for _ in range(config.num_decoder_layers)]
        self.blocks = nn.ModuleList([*encoder, *decoder])
        if config.order is Order.pre:
            self.encoder_final_norm, self.decoder_final_norm = config.make_norm(), config.make_norm()
        if head and not config.tie_embeddings:
            self.head = nn.Linear(width, vocab_size, bias=False)
        if head and config.head_bias:
            self.logit_bias = nn.Parameter(torch.empty(vocab_size))

    def forward(self, tokens: Tensor, positions: Tensor, layout: Layout, source: Stream | None = None) -> Tensor:
        """Return the final hidden states of the target (N, D), ready for the head."""
        assert source is not None, "an encoder-decoder reads a source"
        states = self.encode(source)
        return self.decode(tokens, positions, layout, states, Layout.across(layout, source.layout))

    def encode(self, source: Stream) -> Tensor:
        """Return the final hidden states of the source (Ns, D)."""
        layout, relative = source.layout, self._relative("encoder")
        x = self._embedded(source.tokens, source.positions, "encoder")
        blocks = self.blocks[: self.config.layers]
        make_plans(blocks, x, layout, relative)
        for block in blocks:
            x = block(x, layout, relative=relative)
        return self._final(x, "encoder")

    def decode(
        self,
        tokens: Tensor,
        positions: Tensor,
        layout: Layout,
        states: Tensor | Sequence[SourceCache],
        cross_layout: Layout,
        caches: Sequence[KeyValueCache] | None = None,
    ) -> Tensor:
        """Return the final hidden states of the target (N, D), ready for the head.

        `states` are those of the source (Ns, D), or caches of its `keys_and_values`, one a block of the decoder;
        `cross_layout` leads from the target's queries to the source's keys. With `caches` the tokens are the newest of
        their sequences: see `Decoder.forward`.
        """
        relative = self._relative("decoder")
        x = self._embedded(tokens, positions, "decoder")
        if isinstance(states, Tensor):
            make_plans(self.decoder_blocks(), x, layout, relative)
            make_cross_plans(self.decoder_blocks(), x, states, cross_layout)
        for layer, block in enumerate(self.decoder_blocks()):
            seen = SeenSource(states if isinstance(states, Tensor) else states[layer], cross_layout)
            x = block(x, layout, cache=caches[layer] if caches else None, relative=relative, seen=seen)
        x = self._final(x, "decoder")
        return x * self.config.width**-0.5 if self.config.head_scale else x

    def keys_and_values(self, states: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return what each block of the decoder makes of the source's states (Ns, D): (Ns, H, E) twice."""
        return [block.cross.keys_and_values(states) for block in self.decoder_blocks()]

    def decoder_blocks(self) -> Iterable[CrossBlock]:
        """Yield the blocks of the decoder."""
        for block in self.blocks[self.config.layers :]:
            assert isinstance(block, CrossBlock)
            yield block

    def _embedded(self, tokens: Tensor, positions: Tensor, side: str) -> Tensor:
        """Return what the first block reads (N, D); `side` is encoder or decoder, as modules are named."""
        config = self.config
        x = self.embedding(tokens)
        if config.embedding_scale:
            x = x * config.width**0.5
        if config.positions is Positions.learned:
            x = x + self.get_submodule(f"{side}_position_embedding")(positions + config.position_offset)
        elif config.positions is Positions.sinusoidal:
            x = x + sinusoids(positions, config.width).to(x.dtype)
        if config.embedding_norm:
            x = self.get_submodule(f"{side}_embedding_norm")(x)
        return F.dropout(x, config.dropout, self.training)

    def _relative(self, side: str) -> RelativeBias | None:
        """Return what all self-attentions of a side add to their scores."""
        config = self.config
        if config.positions is not Positions.relative:
            return None
        table = self.get_parameter(f"{side}_distance_embedding.weight")
        return RelativeBias(table, bidirectional=side == "encoder", max_distance=config.max_distance)

    def _final(self, x: Tensor, side: str) -> Tensor:
        """Normalise what the last block returns; with relative positions it is dropped out, too, as in T5."""
        if self.config.order is Order.pre:
            x = self.get_submodule(f"{side}_final_norm")(x)
        relative = self.config.positions is Positions.relative
        return F.dropout(x, self.config.dropout, self.training and relative)

    @property
    def max_positions(self) -> int | None:
        """Positions that the model has vectors for, on either side; None where positions are computed."""
        return self.config.max_seq_len if self.config.positions is Positions.learned else None

    def head_weight(self) -> Tensor:
        """Return the vocabulary projection (V, D): the embedding itself where tied."""
        return self.embedding.weight if self.config.tie_embeddings else self.head.weight

    def head_bias(self) -> Tensor | None:
        """Return what is added to the logits, (V,); None: nothing."""
        return self.logit_bias if self.config.head_bias else None

    def depth(self, name: str) -> int:
        """Return how deep a parameter lies on its own side (see `Model`).

        The last blocks of both sides are equally deep; the first ones only where there are as many on either side.
        """
        depth = super().depth(name)
        if not name.startswith("blocks."):
            return depth
        in_encoder = depth <= self.config.layers
        return self.top - 1 - (self.config.layers if in_encoder else len(self.blocks)) + depth

    @property
    def top(self) -> int:
        """The depth of what stands after the last blocks."""
        return max(self.config.layers, self.config.num_decoder_layers) + 1

    def initial(self, name: str) -> Initial:
        """Return the distribution of a parameter by the configured scheme (see `Init`)."""
        return self.config.initial(name, self.get_parameter(name).ndim)

    def flops_per_token(self, seq_len: float, head_share: float = 1.0, target_share: float = 0.5) -> float:
        """Return the operations of one token of either side (see `EncoderDecoderModel` and `NetworkConfig`).

        Tokens of the source pass through the encoder, and through the projections to keys and values that all blocks of
        the decoder have of them; tokens of the target through the rest. Each sees the tokens of its own side, and those
        of the target see the source's as well. Where the encoder learns, the backward pass goes through all of the
        decoder, frozen or not.
        """
        source, target = 1 - target_share, target_share
        scores = 4.0 * self.config.all_heads_width * seq_len  # of a token that sees both sides, forward
        in_source = in_target = embeddings_learn(self)  # whether the backward pass comes so far
        total = 0.0
        for block in self.blocks[: self.config.layers]:
            in_source = in_source or learns(block.parameters())
            products = matrix_flops(block.parameters(), reached=in_source)
            total += source * (products + source * scores * (3 if in_source else 1))
        for block in self.decoder_blocks():
            in_target = in_target or in_source or learns(block.parameters())
            read = block.cross.kv
            products = matrix_flops(block.parameters(), reached=in_target)
            products -= matrix_flops(read.parameters(), reached=in_target)
            total += source * matrix_flops(read.parameters(), reached=in_source)
            total += target * (products + scores * (3 if in_target else 1))
        head = [self.head_weight()] if head_share else []
        return total + target * head_share * matrix_flops(head, reached=in_target)

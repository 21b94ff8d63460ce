"""What a model and an attention backend provide, and the layout of ragged sequences.

Holds protocols and bases; blocks, attention kernels and architectures live beside it.

Letters of shapes in this folder: N tokens of the micro-batch, S sequences, D model width, H query heads,
K key-value heads, E width of one head, V vocabulary, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from pretrain.models.init import Initial
from pretrain.models.width_scaling import UNSCALED, WidthScaling
from pretrain.registry import choices

Cut = Callable[[Tensor], Sequence[Tensor]]
"""Cuts the rows of a stream, (N, ...), into parts."""


class ModelKind(StrEnum):
    """Which tokens of its sequence a token sees. Every model is of one kind, and every objective trains one."""

    causal = "causal"  # itself and those before it: a decoder
    bidirectional = "bidirectional"  # all of them: an `EncoderModel`
    encoder_decoder = "encoder_decoder"  # a source all of it, a target as a decoder: an `EncoderDecoderModel`

    @property
    def generates(self) -> bool:
        """Whether models of this kind continue a text."""
        return self is ModelKind.causal


@dataclass
class Layout:
    """Where sequences begin: queries and keys each lie end to end in a flat stream.

    Sequence s owns queries[q_offsets[s]:q_offsets[s+1]] and keys[k_offsets[s]:k_offsets[s+1]]. Under a causal mask
    the last query of a sequence sees its last key, so that with a cache the queries are the newest positions.
    """

    q_offsets: Tensor  # (S+1,) int32
    k_offsets: Tensor  # (S+1,) int32, the same tensor in self-attention
    max_q: int  # longest query sequence in tokens, an upper bound is allowed
    max_k: int  # longest key sequence in tokens, an upper bound is allowed
    q_lengths: list[int] | None = None  # (S,) tokens of each; None: backends that need them read the offsets
    k_lengths: list[int] | None = None
    _plans: dict[Any, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def across(cls, queries: Layout, keys: Layout) -> Layout:
        """Return the layout of attention from the queries of one stream to the keys of another."""
        return cls(queries.q_offsets, keys.k_offsets, queries.max_q, keys.max_k, queries.q_lengths, keys.k_lengths)

    @classmethod
    def of(cls, offsets: Tensor, max_len: int, lengths: list[int] | None = None) -> Layout:
        """Return the layout of self-attention over sequences at `offsets` (S+1,), of `lengths` if they are known."""
        return cls(offsets, offsets, max_len, max_len, lengths, lengths)

    def plan(self, key: Any, make: Callable[[], Any]) -> Any:
        """Return what a backend derives from the offsets, made once and shared by all layers of a forward pass."""
        if key not in self._plans:
            self._plans[key] = make()
        return self._plans[key]


class Distances(Protocol):
    """How the distances between tokens share the rows of a table. Hashable: plans may be keyed by it."""

    @property
    def farthest(self) -> int:
        """Positions; from there on all distances on one side share a row."""
        ...

    def rows(self, relative: Tensor) -> Tensor:
        """Return the row of each position of a key minus that of its query, int64 of the same shape, on the CPU."""
        ...


class Bias(Protocol):
    """What is added to the score of a query and a key, by how far apart they are.

    It is the function, never its values for all pairs: backends look up what they need.
    """

    @property
    def distances(self) -> Distances:
        """How distances share the rows of its tables."""
        ...

    def at(self, head: Tensor, q: Tensor, k: Tensor, row: Tensor) -> Tensor:
        """Return what it adds for a head, a row of the stream of queries, one of keys, and one of `distances`.

        All are int64 and broadcast against each other.
        """
        ...

    def dense(self, rows: Tensor, num_q: int, *, causal: bool) -> Tensor:
        """Return what it adds in sequences of `num_q` queries that lie end to end, (B or 1, H, num_q, num_k).

        `rows` (B or 1, num_q + num_k - 1) are those that `relative.rows_between` returned. `causal`: what it adds to
        keys after the query is -inf; for sequences without a cache.
        """
        ...

    def cut(self, queries: Cut, keys: Cut) -> Iterable[Bias]:
        """Return the bias of each of the parts that the streams of queries and of keys are cut into, or of more."""
        ...

    def single(self) -> Bias:
        """Return it in single precision or better, in which its gradients are to be added up."""
        ...


@dataclass
class Stream:
    """Sequences that lie end to end: N tokens of S sequences."""

    tokens: Tensor  # (N,) int64
    positions: Tensor  # (N,) int64, position inside its sequence
    offsets: Tensor  # (S+1,) int32, sequence s is tokens[offsets[s]:offsets[s+1]]
    max_len: int  # longest sequence in tokens, an upper bound is allowed
    lengths: list[int] | None = None  # (S,) tokens of each sequence, known on the CPU; see `Layout`

    @property
    def layout(self) -> Layout:
        """Return a layout of self-attention, anew at each call: one serves one forward pass."""
        return Layout.of(self.offsets, self.max_len, self.lengths)


class Attend(Protocol):
    """One attention backend. All agree up to floating-point order; one that cannot apply a mask raises an error."""

    def __call__(
        self,
        q: Tensor,  # (Nq, H, E)
        k: Tensor,  # (Nk, K, E), K divides H
        v: Tensor,  # (Nk, K, E)
        layout: Layout,
        *,
        causal: bool,
        window: int | None = None,  # a query sees at most `window` keys up to itself (and as many after, if not causal)
        dropout: float = 0.0,  # probability that an attention weight is dropped
        scale: float | None = None,  # multiplies the scores; None: 1 / sqrt(E)
        bias: Bias | None = None,  # added to the scaled scores
    ) -> Tensor:  # (Nq, H, E)
        ...


class Asked(NamedTuple):
    """What a layer will ask of its backend in a pass, known before its queries are."""

    num_q: int  # tokens of the stream of queries, Nq
    num_k: int  # of keys, Nk
    dtype: torch.dtype  # of queries
    head_width: int  # E
    dropout: float
    causal: bool = False
    window: int | None = None
    distances: Distances | None = None  # of the bias; None: there is none


class Planner:
    """A backend that derives from a layout what graphs of blocks cannot make; models have it do so before them."""

    def plan(self, layout: Layout, asked: Asked) -> None:
        """Make the plans that a call will find (`Layout.plan`), unless they are there."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class AttentionUse:
    """What a run asks of its attention."""

    heads: int  # H
    kv_heads: int  # K
    head_width: int  # E
    causal: tuple[bool, ...]  # which masks its layers have: causal ones, others, or both
    windows: tuple[int | None, ...]  # of its layers, each once; None: all keys
    biased: bool  # whether scores get a bias
    dtype: torch.dtype = torch.float32  # of queries, keys and values
    dropout: float = 0.0  # probability that an attention weight is dropped


class AttentionConfig:
    """A choice of the config group `attention`."""

    def check(self, *, dtype: torch.dtype, dropout: float, dropout_key: str, bias: str | None = None) -> None:
        """Raise `ConfigError` for what the backend cannot compute; this default accepts everything.

        `dtype` is that of `precision`, `dropout` the probability that an attention weight is dropped, set by
        `dropout_key`; `bias` is the setting by which scores get a bias (`ModelConfig.score_bias`), None if they get
        none. Needs no device: `build` looks at those.
        """

    def build(self) -> Attend:
        """Return the backend; raise `ConfigError` where no device can run it."""
        raise NotImplementedError

    def start(self, use: AttentionUse, device: torch.device) -> str:
        """Choose the kernels of a run on its device, and return their names for its plan.

        Raises `ConfigError` for kernels that are asked for by name and cannot be had.
        """
        return choices()[type(self)][1]

    def end(self) -> None:
        """Undo what `start` changed in the process."""


class Model(nn.Module):
    """A network from token ids to final hidden states, built on the meta device and filled by a strategy.

    Constructors create no data: they run under `torch.device("meta")`. Strategies shard, compile and checkpoint
    activations block by block, over `blocks`; the model itself knows nothing of ranks.
    """

    blocks: nn.ModuleList
    width_scaling: WidthScaling = UNSCALED  # by which optimizers set the learning rates of its matrices
    whole_tables: bool = False  # blocks get tables as they are, not cut to a batch: each size would be compiled anew

    def forward(self, tokens: Tensor, positions: Tensor, layout: Layout) -> Tensor:
        """Return the final hidden states (N, D), normalised and ready for the head."""
        raise NotImplementedError

    def head_weight(self) -> Tensor:
        """Return the vocabulary projection (V, D), which may be the embedding itself (tied)."""
        raise NotImplementedError

    def initial(self, name: str) -> Initial:
        """Return the distribution that the parameter or buffer of that name is initialised from."""
        raise NotImplementedError

    def depth(self, name: str) -> int:
        """Return how deep a parameter lies: 0 before the blocks, n in the n-th of them, `top` after the last."""
        part, _, rest = name.partition(".")
        if part == "blocks":
            return int(rest.partition(".")[0]) + 1
        return 0 if "embedding" in part else self.top

    @property
    def top(self) -> int:
        """The depth of what stands after the last block."""
        return len(self.blocks) + 1

    def flops_per_token(self, seq_len: float, head_share: float = 1.0) -> float:
        """Return the floating-point operations of one token's forward and backward pass at this sequence length.

        What frozen parameters spare is left out. `head_share` is the share of tokens that pass through the head; 0 for
        a model built without one.
        """
        raise NotImplementedError


class EncoderModel(Model):
    """A bidirectional network, whose head predicts masked tokens."""

    def forward(self, tokens: Tensor, positions: Tensor, layout: Layout, segments: Tensor | None = None) -> Tensor:
        """Return the final hidden states (N, D); `segments` (N,) are token-type ids, all 0 where None."""
        raise NotImplementedError

    def head_input(self, hidden: Tensor) -> Tensor:
        """Return what the vocabulary projection multiplies, (M, D), for the hidden states of chosen tokens (M, D)."""
        raise NotImplementedError

    @property
    def width(self) -> int:
        """Width of the hidden states, D; this default is for models whose vocabulary projection is as wide."""
        return self.head_weight().shape[1]

    def head_bias(self) -> Tensor:
        """Return what is added to the logits, (V,)."""
        raise NotImplementedError


class EncoderDecoderModel(Model):
    """An encoder of a source and a decoder of a target, which sees all of the source's states.

    Sequence s of the source belongs to sequence s of the target. `blocks` are those of the encoder, then the decoder's.
    """

    def forward(self, tokens: Tensor, positions: Tensor, layout: Layout, source: Stream | None = None) -> Tensor:
        """Return the final hidden states of the target (N, D), normalised and ready for the head; it needs a source."""
        raise NotImplementedError

    def head_bias(self) -> Tensor | None:
        """Return what is added to the logits, (V,); None: nothing."""
        raise NotImplementedError

    def flops_per_token(self, seq_len: float, head_share: float = 1.0, target_share: float = 0.5) -> float:
        """Return the operations of one token of either side, `seq_len` being the tokens of both sides of a pair.

        `target_share` of them are the target's, of which `head_share` pass through the head.
        """
        raise NotImplementedError


class ModelConfig:
    """A choice of the config group `model`."""

    kind: ClassVar[ModelKind]  # not a setting
    token_types: int = 0  # kinds of segments that it tells apart; 0: it gets none
    family: str | None = None  # model_type of the Hugging Face family whose heads and export it has; null: the first

    @property
    def score_bias(self) -> str | None:
        """The setting by which its attention adds a bias to scores, "model.positions=relative"; None: it adds none."""
        return None

    @property
    def attention_use(self) -> AttentionUse | None:
        """What it asks of its attention, in fp32 unless a run says otherwise; None: it has no attention of ours."""
        return None

    def build(self, *, vocab_size: int, attend: Attend, head: bool = True) -> Model:
        """Return the model; called under `torch.device("meta")`, so nothing is allocated.

        Without its `head`, the modules that only predict tokens are left out and their methods are not called: tasks
        bring heads of their own, and parameters that no loss trains would only take up memory.
        """
        raise NotImplementedError


def named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield parameters and persistent buffers by name, a tied tensor once, under its first name."""
    yield from module.named_parameters()
    persistent = module.state_dict(keep_vars=True).keys()
    yield from ((name, buffer) for name, buffer in module.named_buffers() if name in persistent)


def materialize(module: nn.Module, device: torch.device | str) -> None:
    """Give tensors on the meta device memory, with undefined values.

    As `to_empty`, which asks meta tensors for others like them: for that torch imports its symbolic shapes, for half a
    second.
    """
    module._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device=device))

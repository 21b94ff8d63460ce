"""The kernels of a micro-batch of a preset: operations and bytes of each, counted on a GPU that is not there.

Holds the counting. What it would take is estimated by `roofline`. Blocks that repeat are traced once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import Enum
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.fake_gpu import CUDA, pretend_h100
from pretrain.compose import compose
from pretrain.config import PretrainConfig
from pretrain.data.batch import IGNORED, Batch
from pretrain.models.base import Layout, ModelKind, Stream
from pretrain.objectives.base import Objective

BARE = ("empty", "new_empty", "promote_types", "detach", "_unsafe_view")  # memory and views: no kernel
FACTORS = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}  # products, and the place of the first factor in their inputs
ALIGNED_BYTES = 16  # of rows, below which tensor cores are fed by slow loads


class Kind(Enum):
    """What a kernel's time depends on."""

    product = "product"
    attention = "attention"
    memory = "memory"


@dataclass
class Kernel:
    """One launch."""

    kind: Kind
    name: str
    phase: str  # forward or backward
    block: int | None  # None: outside of blocks
    flops: float
    reads: dict[int, int]  # bytes, by storage
    writes: dict[int, int]
    aligned: bool = True  # rows of a product's matrices begin at multiples of ALIGNED_BYTES

    @property
    def bytes(self) -> int:
        return sum(self.reads.values()) + sum(self.writes.values())


@dataclass
class Trace:
    """A micro-batch. Where blocks repeat, `blocks` says which of those traced stands for each."""

    cfg: PretrainConfig
    module: Objective  # as deep as the preset's, on the meta device
    kernels: list[Kernel] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    kept: set[int] = field(default_factory=set)  # storages that outlive the micro-batch: gradients

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.module.parameters())


class _Counting(TorchDispatchMode):
    """Makes a `Kernel` of every operator that launches one."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[Kernel] = []
        self.phase, self.block = "forward", None
        self._alive: list[Any] = []  # storages, so that no later one has the place of an earlier

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = str(func).split(".")[1]
        if not (str(func).startswith(("prim.", "profiler.")) or func.is_view or name.startswith(BARE)):
            inputs, outputs = (_tensors(tree) for tree in ((args, kwargs or {}), result))
            if name in FACTORS:
                left, right = inputs[FACTORS[name] :][:2]
                self.add(Kind.product, name, inputs, outputs, 2.0 * left.numel() * right.shape[-1])
            else:
                self.add(Kind.memory, name, inputs, outputs)
        return result

    def add(self, kind: Kind, name: str, inputs: list[Tensor], outputs: list[Tensor], flops: float = 0.0) -> None:
        sizes = [{_storage(each): each.nbytes for each in side if each.is_cuda} for side in (inputs, outputs)]
        self._alive += [each.untyped_storage() for each in (*inputs, *outputs)]
        aligned = all(map(_is_aligned, (*inputs, *outputs))) if kind is Kind.product else True
        self.kernels.append(Kernel(kind, name, self.phase, self.block, flops, *sizes, aligned))

    def follow(self, blocks: nn.ModuleList) -> None:
        """Note the block of each kernel; in the backward pass by the nodes that blocks' results come from."""
        for number, block in enumerate(blocks):
            block.register_forward_pre_hook(self._enter(number))
            block.register_forward_hook(self._leave(number))

    def _enter(self, number: int) -> Callable[..., None]:
        def enter(block: nn.Module, args: tuple) -> None:
            if number == 0:
                args[0].grad_fn.register_prehook(lambda *_: self._be(None))
            self._be(number)

        return enter

    def _leave(self, number: int) -> Callable[..., None]:
        def leave(block: nn.Module, args: tuple, output: Tensor) -> None:
            output.grad_fn.register_prehook(lambda *_: self._be(number))
            self._be(None)

        return leave

    def _be(self, block: int | None) -> None:
        self.block = block


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _is_aligned(tensor: Tensor) -> bool:
    rows = [stride for stride in tensor.stride() if stride > 1]
    return all(stride * tensor.itemsize % ALIGNED_BYTES == 0 for stride in rows) if tensor.ndim >= 2 else True


class _Attention(torch.autograd.Function):
    """A fused kernel forward, one backward, which computes scores anew: 5 products for 2."""

    @staticmethod
    def forward(ctx: Any, count: _Counting, pairs: float, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, sums = torch.empty_like(q), q.new_empty(q.shape[:2], dtype=torch.float32)
        ctx.save_for_backward(q, k, v, out, sums)
        ctx.count, ctx.flops = count, 4.0 * q.shape[1] * q.shape[2] * pairs
        count.add(Kind.attention, "attention", [q, k, v], [out, sums], ctx.flops)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        saved = ctx.saved_tensors
        found = [torch.empty_like(each) for each in saved[:3]]
        ctx.count.add(Kind.attention, "attention_backward", [*saved, *grads], found, 2.5 * ctx.flops)
        return None, None, *found


def _attend(count: _Counting) -> Any:
    def attend(
        q: Tensor, k: Tensor, v: Tensor, layout: Layout, *, causal: bool, window: int | None = None, **rest: Any
    ) -> Tensor:
        assert layout.q_lengths is not None and layout.k_lengths is not None
        lengths = zip(layout.q_lengths, layout.k_lengths, strict=True)
        pairs = sum(_pairs(num_q, num_k, causal, window) for num_q, num_k in lengths)
        return _Attention.apply(count, pairs, q, k, v)

    return attend


def _pairs(num_q: int, num_k: int, causal: bool, window: int | None) -> float:
    """Return how many pairs of a query and a key a kernel computes; those at the edges of a window are all counted."""
    if window is None or window >= num_k:
        return num_q * num_k / (2 if causal else 1)
    return num_q * window * (1 if causal else 2)


class _RMSNorm(torch.autograd.Function):
    """The fused kernel of GPUs, for which torch's CPU build has several operators."""

    @staticmethod
    def forward(ctx: Any, count: _Counting, x: Tensor, weight: Tensor) -> Tensor:
        out, scale = torch.empty_like(x), x.new_empty(x.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(x, weight, scale)
        ctx.count = count
        count.add(Kind.memory, "rms_norm", [x, weight], [out, scale])
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, weight, scale = ctx.saved_tensors
        found = [torch.empty_like(x), torch.empty_like(weight)]
        ctx.count.add(Kind.memory, "rms_norm_backward", [x, weight, scale, *grads], found[:1])
        ctx.count.add(Kind.memory, "rms_norm_weight_backward", [x, scale, *grads], found[1:])
        return None, *found


def trace(experiment: str, overrides: Sequence[str] = (), *, sequences: int | None = None) -> Trace:
    """Return the kernels of a micro-batch of whole sequences, by default as many as the preset takes."""
    with pretend_h100() as mode, ExitStack() as stack:
        cfg = compose([f"experiment={experiment}", *overrides], quiet=True)
        result = Trace(cfg, _module(cfg, None))
        depth = len(result.module.model.blocks)
        period = getattr(cfg.model, "global_every", None) or 1
        two_stacks = cfg.model.kind is ModelKind.encoder_decoder
        layers = 2 if two_stacks else min(depth, 1 + period)
        result.blocks = [
            block // (depth // 2) * 2 + (block % (depth // 2) > 0)
            if two_stacks
            else (block if block < layers else 1 + (block - 1) % period)
            for block in range(depth)
        ]
        cut = compose([f"experiment={experiment}", *overrides, f"model.layers={layers}"], quiet=True)
        count = _Counting()
        module = _module(cut, count)
        batch = _batch(cfg, sequences or micro_batch(cfg))
        half = cfg.strategy.shards_weights and cfg.precision.dtype != torch.float32
        if half:  # no autocast: what FSDP2 gathers
            module.to(cfg.precision.dtype)
        stack.enter_context(mode)
        module.to_empty(device=CUDA)
        for parameter in module.parameters():
            parameter.grad = torch.zeros_like(parameter)
        count.follow(module.model.blocks)
        batch = batch._map(mode.from_tensor).to(CUDA)
        single = not half and cfg.precision.dtype != torch.float32
        stack.enter_context(mock.patch.object(F, "rms_norm", _rms_norm(count, single)))
        with count:
            loss = module(batch) if half else cfg.precision.autocast(CUDA)(module.forward)(batch)
            count.phase = "backward"
            loss.total.backward()
        result.kernels = count.kernels
        result.kept = {_storage(parameter.grad) for parameter in module.parameters() if parameter.grad is not None}
    return result


def _rms_norm(count: _Counting, single: bool) -> Callable[..., Tensor]:
    def rms_norm(x: Tensor, shape: Sequence[int], weight: Tensor, eps: float | None = None) -> Tensor:
        return _RMSNorm.apply(count, x.float() if single else x, weight)  # autocast has norms in fp32

    return rms_norm


def _module(cfg: PretrainConfig, count: _Counting | None) -> Objective:
    attend = _attend(count) if count else None
    with torch.device("meta"):
        model = cfg.model.build(vocab_size=cfg.tokenizer.vocab_size, attend=attend)
        return cfg.objective.build(model)


def micro_batch(cfg: PretrainConfig) -> int:
    """Return the sequences of a micro-batch of the preset."""
    tokens = getattr(cfg.train, "micro_batch_tokens", None)
    size = cfg.train.micro_batch_size
    if tokens:
        return max(1, tokens // cfg.data.seq_len)
    assert isinstance(size, int), f"train.micro_batch_size={size} is found on a GPU; name a number with --micro-batch"
    return size


def _batch(cfg: PretrainConfig, sequences: int) -> Batch:
    """Return a batch of sequences of full length, with as many targets as the objective has."""
    lengths, source = [cfg.data.seq_len] * sequences, None
    if cfg.model.kind is ModelKind.encoder_decoder:
        sides = [max(1, min(cfg.data.seq_len, round(side))) for side in cfg.objective.sides(cfg.data.seq_len)]
        source, lengths = _stream([sides[0]] * sequences), [sides[1]] * sequences
    stream = _stream(lengths)
    masking = getattr(cfg.objective, "masking", None)
    num_targets = round(sum(lengths) * masking.rate) if masking else sum(lengths)
    targets = torch.zeros(sum(lengths), dtype=torch.int64)
    targets[num_targets:] = IGNORED
    return Batch(**vars(stream), targets=targets, num_targets=num_targets, source=source)


def _stream(lengths: list[int]) -> Stream:
    offsets = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    rows = torch.zeros(sum(lengths), dtype=torch.int64)
    return Stream(rows, rows.clone(), offsets, max_len=max(lengths), lengths=lengths)


def fused(kernels: Iterable[Kernel], needed: Callable[[int, int], bool]) -> list[Kernel]:
    """Return the kernels with passes between two products made one where they share memory, as a compiler would.

    What is made and used within such a pass is never written; `needed` (storage, number of the last kernel before the
    next product) says whether anything reads it later.
    """
    result: list[Kernel] = []
    for (memory, *_), run in itertools.groupby(
        enumerate(kernels), key=lambda pair: (pair[1].kind is Kind.memory, pair[1].phase, pair[1].block)
    ):
        numbers, between = zip(*run, strict=True)
        groups = _connected(between) if memory else []
        result += [_joined(group, lambda storage, last=numbers[-1]: needed(storage, last)) for group in groups]
        result += [] if memory else between
    return result


def _connected(kernels: Sequence[Kernel]) -> list[list[Kernel]]:
    """Return the kernels in groups that have no storage in common."""
    groups: list[tuple[set[int], list[Kernel]]] = []
    for kernel in kernels:
        storages, members = {*kernel.reads, *kernel.writes}, []
        for group in [group for group in groups if group[0] & storages]:
            groups.remove(group)
            storages |= group[0]
            members += group[1]
        groups.append((storages, [*members, kernel]))
    return [members for _, members in groups]


def _joined(kernels: Sequence[Kernel], needed: Callable[[int], bool]) -> Kernel:
    """Return one pass that reads and writes what these do together."""
    reads: dict[int, int] = {}
    writes: dict[int, int] = {}
    for kernel in kernels:
        reads |= {storage: size for storage, size in kernel.reads.items() if storage not in writes}
        writes |= kernel.writes
    writes = {storage: size for storage, size in writes.items() if needed(storage)}
    return Kernel(Kind.memory, "fused", kernels[0].phase, kernels[0].block, 0.0, reads, writes)

"""Activation memory: what a micro-batch adds to the memory of a rank, measured on tensors without memory.

Holds the measurement. What a rank holds without a micro-batch is said by `StrategyConfig.memory`; which micro-batch is
taken is decided in `train/micro_batches`.

The forward and the backward pass of the whole objective run on torch's fake tensors, which have shapes, types and
storages, but no bytes; a counter adds up the storages that are alive. Blocks that save the same are run twice and
counted as often as there are. The tensors pretend to be on a CPU, for no other device can be differentiated by every
build of torch, so that operators which save something else on a GPU have stand-ins. Compiled blocks save less, for
the compiler recomputes what is cheap: what is measured is an upper bound of that.
"""

from __future__ import annotations

import inspect
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pretrain.data.batch import Batch
from pretrain.models.attention.flash import kernel_window
from pretrain.models.base import Attend, Bias, Layout, Model
from pretrain.objectives.base import Objective
from pretrain.strategy.activation_checkpointing import RecomputationConfig
from pretrain.strategy.precision import Precision

Operators = Callable[[], AbstractContextManager[Any]]  # the context in which operators are those of a device
RUNS = 2  # of blocks that save the same: the first may save what all of them share, such as angles of positions


class Activations(NamedTuple):
    """Bytes that a micro-batch adds on a rank, beside weights, gradients and moments."""

    saved: float  # from the forward to the backward pass: activations, cast weights, the gradients that the loss keeps
    workspace: float  # the most that exists beside these for a moment: logits of a chunk, gradients, a block run again
    blocks: tuple[float, ...] = ()  # what each block adds to `saved`


def activations(
    build: Callable[[Attend], Objective],
    batch: Batch,
    *,
    precision: Precision,
    casts_weights: bool,
    recomputation: RecomputationConfig,
    attend: Attend | None = None,
) -> Activations:
    """Return what a micro-batch adds on a GPU under flash attention, or on a CPU with another backend of attention.

    `build` returns the module on the meta device with a backend; `casts_weights` says whether the strategy holds
    weights in the precision of products, so that nothing runs under autocast.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode  # pulls in torch._dynamo

    module, device, dtype = build(attend or flash_stand_in()), torch.device("cpu"), precision.dtype
    if casts_weights:
        module.to(dtype)
    # Norms are computed in single precision: so has autocast it on a GPU.
    operators = nullcontext if attend else partial(_GPUOperators, not casts_weights and dtype != torch.float32)
    with torch.random.fork_rng(devices=[]), FakeTensorMode(allow_non_fake_inputs=True):
        module.to_empty(device=device)
        for parameter in module.parameters():  # of an earlier micro-batch
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        live = _Live(module)
        blocks = _Blocks(module.model, recomputation, operators, live)
        with live:
            with operators(), nullcontext() if casts_weights else precision.autocast(device):
                loss = module(batch)
                saved, forward, live.peak = live.now, live.peak, live.now  # with the weights that autocast still holds
            loss.total.backward()
    return Activations(saved + blocks.skipped(), max(forward, live.peak) - saved, blocks.kept())


class _Live(TorchDispatchMode):
    """Counts the bytes of storages that operators made and that are alive, without those of a module."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.now = self.peak = 0
        held = [*module.parameters(), *module.buffers()]
        held += [tensor.grad for tensor in held if tensor.grad is not None]
        self._held = held  # alive, so that no other storage takes the place of theirs
        self._known = {tensor.untyped_storage()._cdata for tensor in held}
        self._marks: list[Callable[[int], None]] = []

    def mark(self, note: Callable[[int], None]) -> None:
        """Note the bytes that are alive when the next operator begins: until then callers let go of their inputs."""
        self._marks.append(note)

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for note in self._marks:
            note(self.now)
        self._marks.clear()
        made = operator(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        self.peak = max(self.peak, self.now)
        return made

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.now += size
            weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


class _Blocks:
    """Runs blocks, those that save the same `RUNS` times, and notes what each keeps."""

    def __init__(self, model: Model, recomputation: RecomputationConfig, operators: Operators, live: _Live) -> None:
        self.live = live
        self.begins: dict[int, int] = {}  # bytes that are alive, by the number of the block
        self.ends: dict[int, int] = {}
        self.ran: dict[int, bool] = {}
        self.runs: Counter[str] = Counter()
        for block in model.blocks:
            block.forward = partial(_with, operators, block.forward)  # also where it is run again
        once = [block.forward for block in model.blocks]
        recomputation.recompute(model)
        self.kinds = [_kind(block, block.forward is forward) for block, forward in zip(model.blocks, once, strict=True)]
        for number, block in enumerate(model.blocks):
            block.forward = partial(self._forward, number, block.forward)

    def _forward(self, number: int, forward: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.live.mark(partial(self.begins.__setitem__, number))
        kind = self.kinds[number]
        runs = self.ran[number] = self.runs[kind] < RUNS
        self.runs[kind] += 1
        out = forward(x, *args, **kwargs) if runs else x.clone()
        self.live.mark(partial(self.ends.__setitem__, number))
        return out

    def kept(self) -> tuple[float, ...]:
        """Return what each block keeps; one that was not run as much as the last one of its kind that was."""
        found: dict[Any, int] = {}
        for number, kind in enumerate(self.kinds):
            if self.ran[number]:
                found[kind] = self._measured(number)
        return tuple(self._measured(n) if self.ran[n] else found[kind] for n, kind in enumerate(self.kinds))

    def skipped(self) -> float:
        """Return what blocks keep that were not run."""
        return sum(kept - self._measured(n) for n, kept in enumerate(self.kept()) if not self.ran[n])

    def _measured(self, number: int) -> int:
        return self.ends[number] - self.begins[number]


def _with(operators: Operators, forward: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    with operators():
        return forward(*args, **kwargs)


def _kind(block: nn.Module, once: bool) -> str:
    """Return what blocks have in common that save the same; `once`: they are not run again in the backward pass."""
    parts = [(name, type(part), getattr(part, "window", None)) for name, part in block.named_modules()]
    shapes = [(name, tuple(each.shape), each.requires_grad) for name, each in block.named_parameters()]
    return str((once, parts, shapes))


def flash_stand_in() -> Attend:
    """Return a backend that computes nothing and saves what flash attention saves; with a bias what flex saves."""
    from torch.nn.attention.varlen import varlen_attn  # pulls in torch._dynamo

    grouped = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}

    def attend(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layout: Layout,
        *,
        causal: bool,
        window: int | None = None,
        dropout: float = 0.0,
        scale: float | None = None,
        bias: Bias | None = None,
    ) -> Tensor:
        bounds = (layout.q_offsets, layout.k_offsets, layout.max_q, layout.max_k)
        options: dict[str, Any] = grouped if q.shape[1] != k.shape[1] else {}
        out = varlen_attn(q, k, v, *bounds, scale=scale, window_size=kernel_window(window, causal), **options)
        assert isinstance(out, Tensor)
        read = [] if bias is None else [each for each in tree_leaves(bias.single()) if isinstance(each, Tensor)]
        return _Reading.apply(out, *read) if read else out

    return attend


class _Reading(torch.autograd.Function):
    """Keeps what a kernel reads beside its inputs, for the backward pass."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, *read: Tensor) -> Tensor:
        ctx.save_for_backward(*read)
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return grads[0], *(torch.zeros_like(tensor) for tensor in ctx.saved_tensors)


class _GPUOperators(TorchFunctionMode):
    """Replaces operators that save something else on a GPU than on a CPU."""

    def __init__(self, single: bool) -> None:
        super().__init__()
        self.single = single  # whether norms are computed in single precision, as autocast has it on a GPU
        self.replaced = {F.layer_norm: self._layer_norm, F.rms_norm: self._rms_norm, F.dropout: self._dropout}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.replaced.get(function, function)(*args, **(kwargs or {}))

    def _layer_norm(self, x: Tensor, shape: Sequence[int], *args: Any, **kwargs: Any) -> Tensor:
        return F.layer_norm(x.float() if self.single else x, shape, *args, **kwargs)

    def _rms_norm(self, x: Tensor, shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None) -> Any:
        return _FusedRMSNorm.apply(x.float() if self.single else x, weight)

    def _dropout(self, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return torch.native_dropout(x, p, True)[0] if p and training else x


class _FusedRMSNorm(torch.autograd.Function):
    """The fused kernel of GPUs, which keeps its input and a number a row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight, x.new_empty(x.shape[:-1], dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None]:
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), None if weight is None else torch.empty_like(weight)

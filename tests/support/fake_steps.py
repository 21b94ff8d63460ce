"""Steps of presets on fake CUDA tensors, and every operator that they dispatch, as JSON; for processes of `fake_cuda`.

Holds no assertion: what must be is in tests/fakes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.distributed as dist
from fake_cuda import counted_graphs, preset, ragged_batch, uncompiled
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor._sharding_prop import ShardingPropagator
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._pytree import tree_leaves

from bench.fake_gpu import CUDA, pretend_h100
from pretrain.config import PretrainConfig
from pretrain.distributed.world import World
from pretrain.objectives.base import Objective

IGNORED = ("prim", "profiler")  # namespaces of what computes nothing
BARE = ("empty", "new_empty", "promote_types", "detach", "_unsafe_view")  # memory and views that launch nothing


class Operator(NamedTuple):
    """One call of an operator. Tensors are (device type, dtype, dimensions, elements)."""

    phase: str  # batch, forward, backward or step
    place: str  # "block 3", or "" outside of blocks
    name: str  # aten.mm.default
    inputs: list[tuple[str, str, int, int]]
    outputs: list[tuple[str, str, int, int]]
    waits: bool  # a copy between devices without non_blocking
    launches: bool  # whether it runs a kernel: not a view, not bare memory

    @property
    def base(self) -> str:
        """The name without namespace and overload."""
        return _base(self.name)

    @property
    def sources(self) -> set[str]:
        """The types of devices that it reads from."""
        return {device for device, *_ in self.inputs}

    @property
    def targets(self) -> set[str]:
        """The types of devices that its results are on."""
        return {device for device, *_ in self.outputs}

    @property
    def copies(self) -> bool:
        """Whether it may copy from one device to another."""
        return self.base in ("_to_copy", "copy_")


class Recorder:
    """What was dispatched, and where in the step. A dispatch mode of its own would stop Dynamo."""

    def __init__(self) -> None:
        self.operators: list[Operator] = []
        self.phase = self.place = ""  # nothing is recorded outside of a phase
        self._inside = False

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        self.phase, self.place = phase, ""
        yield
        self.phase = self.place = ""

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Record what reaches a `FakeTensorMode` by itself, not what they are made of or DTensor plans with."""
        dispatch, plan = FakeTensorMode.dispatch, ShardingPropagator._propagate_tensor_meta_non_cached

        def recorded(mode, func, types, args=(), kwargs=None):
            traced = torch._guards.TracingContext.try_get() is not None  # Dynamo at work, not the program
            if self._inside or traced or not self.phase or str(func).startswith(IGNORED):
                return dispatch(mode, func, types, args, kwargs or {})
            self._inside = True
            try:
                result = dispatch(mode, func, types, args, kwargs or {})
            finally:
                self._inside = False
            self._add(func, args, kwargs or {}, result)
            return result

        def planned(*args, **kwargs):
            inside, self._inside = self._inside, True
            try:
                return plan(*args, **kwargs)
            finally:
                self._inside = inside

        with (
            mock.patch.object(FakeTensorMode, "dispatch", recorded),
            mock.patch.object(ShardingPropagator, "_propagate_tensor_meta_non_cached", planned),
        ):
            yield

    def _add(self, func: Any, args: tuple, kwargs: dict, result: Any) -> None:
        inputs, outputs = _described((args, kwargs)), _described(result)
        crosses = len({device for device, *_ in inputs + outputs}) > 1
        waits = crosses and not (kwargs.get("non_blocking") or any(each is True for each in args[2:]))
        launches = not getattr(func, "is_view", False) and not _base(str(func)).startswith(BARE)
        self.operators.append(Operator(self.phase, self.place, str(func), inputs, outputs, waits, launches))

    def follow(self, blocks: nn.ModuleList) -> None:
        """Say of each operator in which block it is, in the backward pass by the nodes that its results come from."""
        for number, block in enumerate(blocks):
            block.register_forward_pre_hook(self._entering(number))
            block.register_forward_hook(self._leaving(number))

    def _entering(self, number: int) -> Callable[..., None]:
        def enter(block: nn.Module, args: tuple) -> None:
            if number == 0 and self.phase == "forward" and args[0].grad_fn is not None:
                args[0].grad_fn.register_prehook(lambda *_: self._be(""))
            self._be(f"block {number}")

        return enter

    def _leaving(self, number: int) -> Callable[..., None]:
        def leave(block: nn.Module, args: tuple, output: torch.Tensor) -> None:
            if self.phase == "forward":
                output.grad_fn.register_prehook(lambda *_: self._be(f"block {number}"))
            self._be("")

        return leave

    def _be(self, place: str) -> None:
        self.place = place


def _base(name: str) -> str:
    return name.split(".")[1] if "." in name else name


def _described(tree: Any) -> list[tuple[str, str, int, int]]:
    tensors = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
    return [(each.device.type, str(each.dtype).removeprefix("torch."), each.ndim, each.numel()) for each in tensors]


class Gradient(NamedTuple):
    """What became of a parameter in a backward pass."""

    name: str
    device: str | None  # None: it has no gradient
    dtype: str | None
    expected: str  # the parameter's own dtype


def steps(
    runs: list[tuple[str, list[str]]], *, ranks: int = 64, micro_batches: int = 1, dynamo: bool = False
) -> list[dict[str, Any]]:
    """Take a step of each experiment under its overrides; as rank 0 of so many where the strategy shards weights.

    `dynamo`: what the product compiles is traced, which takes seconds; else its operators run one by one. Returns of
    each run the operators, the gradients of the backward pass, the loss's device and dtype, the parameters' shapes and
    the number of FSDP2's groups.
    """
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    results = []
    for experiment, overrides in runs:
        recorder = Recorder()
        with pretend_h100() as mode, counted_graphs() if dynamo else uncompiled(), recorder.watching():
            cfg, module = preset(experiment, *overrides)
            shapes = {name: list(parameter.shape) for name, parameter in module.named_parameters()}
            gradients, loss = _step(cfg, module, mode, recorder, ranks, micro_batches)
        groups = sum(isinstance(part, FSDPModule) for part in module.modules())
        found = {"operators": recorder.operators, "gradients": gradients, "loss": loss}
        results.append({**found, "shapes": shapes, "groups": groups})
    return results


def _step(
    cfg: PretrainConfig, module: Objective, mode: FakeTensorMode, recorder: Recorder, ranks: int, micro_batches: int
) -> tuple[list[Gradient], list[str]]:
    world = World(rank=0, size=ranks if cfg.strategy.shards_weights else 1, device=CUDA)
    strategy = cfg.strategy.build(world=world, precision=cfg.precision, compilation=cfg.compile)  # its mesh is real
    batch = ragged_batch(cfg, mode)
    with mode:
        recorder.follow(module.model.blocks)
        module.to = lambda device: module  # what Accelerate does, though it is there; fakes cannot be swapped
        wrapped = strategy.setup(module, cfg.optim.build)
        for number in range(micro_batches):
            with recorder.during("batch"):
                moved = batch.to(CUDA)
            with strategy.micro_step(last=number == micro_batches - 1):
                with recorder.during("forward"):
                    loss = wrapped(moved)
                with recorder.during("backward"):
                    strategy.backward(loss.total * (1 / batch.num_targets))
        gradients = [_gradient(name, parameter) for name, parameter in module.named_parameters()]
        with recorder.during("step"):
            strategy.step(1.0, cfg.train.clip_norm)
    return gradients, [str(loss.total.device), str(loss.total.dtype)]


def _gradient(name: str, parameter: nn.Parameter) -> Gradient:
    found = parameter.grad
    place, dtype = (None, None) if found is None else (str(found.device), str(found.dtype))
    return Gradient(name, place, dtype, str(parameter.dtype))


def graphs_of_ragged_batches(experiment: str, *overrides: str, batches: int = 6) -> dict[str, Any]:
    """Return after each batch how many graphs Dynamo has made and how many ran in its forward pass, and the blocks.

    Two evaluations and two steps come first, as in a run; all batches have other lengths. The shorter side of a pair,
    too, has more tokens than a block of flex's masks: for masks of one block torch makes graphs of their own.
    """
    draw = random.Random(7)
    with pretend_h100() as mode, counted_graphs() as counts:
        cfg, module = preset(experiment, *overrides)
        strategy = cfg.strategy.build(world=World(0, 1, CUDA), precision=cfg.precision, compilation=cfg.compile)
        seen = []
        with mode:
            module.to = lambda device: module
            wrapped = strategy.setup(module, cfg.optim.build)
            for trains in [False, False] + [True] * (2 + batches):
                batch = ragged_batch(cfg, mode, [draw.randrange(200, 500) for _ in range(draw.randrange(5, 9))])
                wrapped.train(trains)
                before = counts.calls
                with torch.set_grad_enabled(trains):
                    loss = wrapped(batch.to(CUDA))
                seen.append([counts.graphs, counts.calls - before])
                if trains:
                    strategy.backward(loss.total)
    return {"seen": seen, "blocks": len(module.model.blocks)}

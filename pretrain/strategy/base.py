"""What a strategy is: five verbs between the loop and an engine.

Holds the protocol and the fragment, the unit in which any strategy hands its state to a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pretrain.distributed.world import World
from pretrain.objectives.base import Objective
from pretrain.strategy.compile import CompileConfig
from pretrain.strategy.precision import Precision

WEIGHT = "weight"  # the kind of a fragment that holds fp32 weights; other kinds are the optimizer's own state names


class Fragment(NamedTuple):
    """A run of one flattened tensor: what this rank owns of a weight or of an optimizer moment."""

    name: str  # the parameter's or buffer's name in the trained module
    kind: str  # WEIGHT, or the optimizer's name of the state ("exp_avg", "exp_avg_sq", "momentum_buffer", "step")
    shape: tuple[int, ...]  # of the whole tensor
    start: int  # the first element, counted in the flattened whole tensor
    data: Tensor  # (numel,) on any device, fp32 for floating-point tensors


class Reader(Protocol):
    """A checkpoint as a strategy sees it: any run of any tensor, whatever rank wrote it."""

    def kinds(self, name: str) -> dict[str, torch.Size]:
        """Return the kinds stored for a tensor (weight and moments) and the whole shape of each."""
        ...

    def __call__(self, name: str, kind: str, start: int, numel: int) -> Tensor:
        """Return elements [start, start + numel) of the flattened tensor, (numel,) on the CPU."""
        ...


class Memory(NamedTuple):
    """Bytes that a rank holds at the end of a backward pass, activations and communication buffers apart."""

    weights: float  # that compute
    gradients: float
    optimizer: float  # moments, and fp32 weights beside those that compute


class StrategyConfig(Protocol):
    """What `run` asks of a strategy's dataclass."""

    @property
    def shards(self) -> bool:
        """Whether a rank's optimizer sees parts of matrices."""
        ...

    def check_machine(self, *, ranks: int, device_type: str, precision: Precision) -> None:
        """Raise `ConfigError` for what so many ranks on devices of a type ("cpu", "cuda") cannot do; needs no group."""
        ...

    def build(self, *, world: World, precision: Precision, compilation: CompileConfig) -> Strategy:
        """Return the strategy for this rank."""
        ...

    def memory(self, parameters: int, *, ranks: int, precision: Precision) -> Memory:
        """Predict what a rank will hold of a model of so many parameters under AdamW."""
        ...


class Strategy(Protocol):
    """How one step runs on the hardware. All strategies give the same mathematics."""

    def setup(self, module: Objective, make_optimizer: Callable[[nn.Module], Optimizer]) -> nn.Module:
        """Take over a module that is on the meta device and return the one that the loop calls.

        Memory comes into being for what this rank holds, never for a whole model that is sharded. Its values are
        undefined until `load_fragments`.
        """
        ...

    def micro_step(self, *, last: bool) -> AbstractContextManager[None]:
        """Return the context of one forward and backward pass; gradients are averaged over ranks in the last one."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of `loss` ()."""
        ...

    def step(self, lr_factor: float, clip_norm: float | None) -> Tensor:
        """Clip, update and clear the gradients; return the global gradient norm before clipping, () on the device.

        Every parameter group's own learning rate is multiplied by `lr_factor`. A non-finite norm means that the
        update was skipped: weights and moments are as before.
        """
        ...

    def fragments(self) -> Iterator[Fragment]:
        """Yield what this rank writes of weights, buffers and moments; over all ranks each element comes once."""
        ...

    def load_fragments(self, read: Reader) -> None:
        """Fill weights, buffers and moments from a checkpoint that any strategy wrote at any world size.

        Also from initial or released weights, which have no moments: those begin at zero.
        """
        ...

    def state(self) -> dict[str, float]:
        """Return the scalars beside the fragments (the loss scale), equal on all ranks."""
        ...

    def load_state(self, state: dict[str, float]) -> None:
        """Restore what `state` returned; called before `load_fragments`."""
        ...

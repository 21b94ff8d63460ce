"""What a strategy is: five verbs between the loop and an engine.

Holds the protocols alone. What a strategy saves, and how it reads it back, is `checkpoint.base`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from pretrain.checkpoint.base import Checkpointable
from pretrain.distributed.world import World
from pretrain.objectives.base import Objective
from pretrain.strategy.compile import CompileConfig
from pretrain.strategy.precision import Precision


class Memory(NamedTuple):
    """Bytes that a rank holds at the end of a backward pass, activations and communication buffers apart."""

    weights: float  # that compute
    gradients: float
    optimizer: float  # moments, and fp32 weights beside those that compute


class StrategyConfig(Protocol):
    """The settings of a strategy, and what is known of it before it exists."""

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


class Strategy(Checkpointable, Protocol):
    """How one step runs on the hardware. All strategies give the same mathematics; what they save is in the base."""

    optimizer: Optimizer  # once `setup` has made it

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

"""The interface between the training loop and an engine, and what the strategies share.

Holds no engine. What a strategy saves, and how it reads it back, is declared in `checkpoint.base`. All strategies so
far are data parallel: the loop and the loader give every rank other data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_
from torch.optim import Optimizer

from pretrain.checkpoint.base import Checkpointable, Fragment
from pretrain.distributed.world import World
from pretrain.guard.base import FiniteGuard, Guard, Verdict
from pretrain.objectives.base import Objective
from pretrain.optim.base import guarded_step
from pretrain.optim.shared_matrices import Piece, SharesMatrices
from pretrain.registry import choices
from pretrain.strategy.activation_checkpointing import RecomputationConfig
from pretrain.strategy.compile import CompileConfig
from pretrain.strategy.precision import Precision


class Memory(NamedTuple):
    """Bytes that a rank holds at the end of a backward pass, activations and communication buffers apart."""

    weights: float  # that compute
    gradients: float
    optimizer: float  # moments, and fp32 weights beside those that compute


class Update(NamedTuple):
    """What became of a step, on the device; a skipped one leaves weights and moments as they were."""

    norm: Tensor  # () global gradient norm before clipping
    skipped: Tensor  # () bool; with a finite norm the guard refused it
    norm_z: Tensor | None = None  # () as in `Verdict`


class ReduceDtype(Enum):
    """The precision in which gradients travel."""

    fp32 = "fp32"
    bf16 = "bf16"

    @property
    def dtype(self) -> torch.dtype:
        """Return it as torch names it."""
        return torch.float32 if self is ReduceDtype.fp32 else torch.bfloat16


@dataclass(kw_only=True)
class CommonConfig(RecomputationConfig):
    """The settings that every strategy has."""

    reduce_dtype: ReduceDtype = ReduceDtype.fp32  # fp32 or bf16 (half the traffic): of gradients between ranks

    @property
    def title(self) -> str:
        """What a message calls the strategy: `strategy=TITLE` chooses it."""
        return choices()[type(self)][1]

    @property
    def compiles(self) -> bool:
        """Whether blocks can be compiled under it."""
        return True

    @property
    def offloads(self) -> bool:
        """Whether a part of what a rank of a GPU holds lies in the memory of its host, or in files."""
        return False

    @property
    def shards_weights(self) -> bool:
        """Whether a rank holds parts of the weights between passes, so that it cannot use the model by itself."""
        raise NotImplementedError


class StrategyConfig(Protocol):
    """The settings of a strategy, and what is known of it before it exists."""

    @property
    def title(self) -> str:
        """What a message calls the strategy: `strategy=TITLE` chooses it."""
        ...

    @property
    def compiles(self) -> bool:
        """Whether blocks can be compiled under it."""
        ...

    @property
    def swaps(self) -> bool:
        """Whether moments lie in files between steps."""
        ...

    @property
    def offloads(self) -> bool:
        """Whether a part of what a rank of a GPU holds lies in the memory of its host, or in files."""
        ...

    @property
    def shards_weights(self) -> bool:
        """Whether a rank holds parts of the weights between passes, so that it cannot use the model by itself."""
        ...

    def check_machine(self, *, ranks: int, device_type: str, precision: Precision) -> None:
        """Raise `ConfigError` for what so many ranks on devices of a type ("cpu", "cuda") cannot do; needs no group."""
        ...

    def build(self, *, world: World, precision: Precision, compilation: CompileConfig) -> Strategy:
        """Return the strategy for this rank."""
        ...

    @property
    def casts_weights(self) -> bool:
        """Whether the weights that compute have the precision of products, so that nothing runs under autocast."""
        ...

    def memory(self, parameters: int, *, ranks: int, precision: Precision) -> Memory:
        """Predict what a rank will hold of a model of so many parameters under AdamW."""
        ...

    def buffers(self, *, block: int, outside: int, layers: int, ranks: int, precision: Precision) -> float:
        """Predict the bytes that gathered weights, and gradients on their way, take up at most during a pass.

        The model has so many layers with at most `block` parameters each, and so many parameters `outside` of them.
        """
        ...


class Strategy(Checkpointable, Protocol):
    """How one step runs on the hardware. All strategies give the same mathematics; what they save is in the base."""

    optimizer: Optimizer  # once `setup` has made it
    guard: Guard  # decides which steps are taken; set it before the first one

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

    def replicated(self) -> Iterator[Fragment]:
        """Yield what this rank holds of weights, buffers and moments that other ranks hold, too, in the same order.

        Ranks that yield fragments of the same names, kinds and starts are replicas of each other; their bits must be
        equal after every step. Data are views, (numel,), in the precision in which they are held.
        """
        ...

    def step(self, lr_factor: float, clip_norm: float | None) -> Update:
        """Clip, update and clear the gradients, unless the guard refuses them; say what became of it.

        Every parameter group's own learning rate is multiplied by `lr_factor`.
        """
        ...

    @property
    def scale_exhausted(self) -> bool:
        """Whether gradients overflowed at the smallest loss scale, the same on all ranks. Waits for the device."""
        ...

    def close(self) -> None:
        """Let go of all memory, for another strategy in the same process; no other method may be called any more."""
        ...


class TorchStrategy:
    """What all strategies share, and loss scaling and the end of a step, which sharded ZeRO leaves to DeepSpeed."""

    optimizer: Optimizer

    def __init__(self, cfg: CommonConfig, world: World, precision: Precision, compilation: CompileConfig) -> None:
        self.recomputation: RecomputationConfig = cfg
        self.world = world
        self.precision = precision
        self.compilation = compilation
        self.scope = compilation.on(world.device.type, cfg)
        self.scaler = precision.scaler(world.device)
        self.guard: Guard = FiniteGuard()

    def prepare(self, objective: Objective) -> None:
        """Convert layers, mark what blocks recompute, and compile them with these marks, which say what to save."""
        self.precision.convert(objective.model)
        self.recomputation.recompute(objective.model)
        self.compilation.apply(objective.model, self.scope)
        self.compilation.apply_to_loss(objective, self.scope, self.world.device)

    def share_matrices(self, piece: Callable[[nn.Parameter], Piece], replica_ranks: int) -> None:
        """Tell an optimizer that needs matrices whole what this rank holds of them; see `SharesMatrices`."""
        if isinstance(self.optimizer, SharesMatrices):
            self.optimizer.share(self.world, [piece(matrix) for matrix in self.optimizer.matrices()], replica_ranks)

    def update(self, norm: Tensor, clip_norm: float | None) -> Update:
        """Clip the gradients, whose global norm () this is, take the optimizer's step if it may be, and clear them."""
        verdict = self.guard.judge(norm)
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        clip_grads_with_norm_(parameters, clip_norm or float("inf"), norm)
        guarded_step(self.optimizer, verdict.accepted)
        self.scaler.update()
        self.optimizer.zero_grad()
        return self.told(norm, verdict)

    def told(self, norm: Tensor, verdict: Verdict) -> Update:
        """Return what became of a step, on this rank's device."""
        device, z = self.world.device, verdict.norm_z
        return Update(norm.to(device), ~verdict.accepted.to(device), None if z is None else z.to(device))

    @property
    def scale_exhausted(self) -> bool:
        return self.scaler.exhausted

    def close(self) -> None:
        """Let go of all memory: here it goes with the last reference to the strategy and to its module."""

    def state(self) -> dict[str, float]:
        return {**self.scaler.state_dict(), **self.guard.state()}

    def load_state(self, state: dict[str, float]) -> None:
        self.guard.load_state(state)
        if "scale" in state and self.scaler.is_enabled():
            self.scaler.load_state_dict(state)

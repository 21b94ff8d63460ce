"""Data parallelism with whole replicas, through Accelerate, and how one process alone trains.

Holds the strategy; sharded engines have files of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.optim import Optimizer

from pretrain.checkpoint.base import WEIGHT, Fragment, Reader
from pretrain.distributed.mismatch import ddp_built
from pretrain.distributed.world import World
from pretrain.errors import check
from pretrain.models.base import materialize, named_tensors
from pretrain.objectives.base import Objective
from pretrain.optim.base import gradient_norm, set_learning_rates
from pretrain.optim.shared_matrices import whole
from pretrain.registry import register
from pretrain.strategy.base import CommonConfig, Memory, ReduceDtype, TorchStrategy, Update
from pretrain.strategy.compile import CompileConfig
from pretrain.strategy.precision import Precision

if TYPE_CHECKING:
    from accelerate import Accelerator


@register("strategy", "ddp")
@dataclass(kw_only=True)
class DDPConfig(CommonConfig):
    """Every rank holds the whole model, its gradients and its moments."""

    bucket_mb: int = 25  # gradients are reduced in buckets of this many MiB while the backward pass runs

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.bucket_mb > 0, "strategy.bucket_mb", self.bucket_mb, "above 0 MiB")

    def check_machine(self, *, ranks: int, device_type: str, precision: Precision) -> None:
        """See `StrategyConfig`: replicas run everywhere."""

    def build(self, *, world: World, precision: Precision, compilation: CompileConfig) -> DDP:
        """Return the strategy for this rank."""
        return DDP(self, world, precision, compilation)

    @property
    def swaps(self) -> bool:
        """Whether moments lie in files between steps."""
        return False

    @property
    def shards_weights(self) -> bool:
        """Whether a rank holds parts of the weights between passes."""
        return False

    def memory(self, parameters: int, *, ranks: int, precision: Precision) -> Memory:
        """Predict what a rank holds; see `StrategyConfig`. The precision changes activations alone."""
        return Memory(4 * parameters, 4 * parameters, 8 * parameters)

    @property
    def casts_weights(self) -> bool:
        """Whether the weights that compute have the precision of products: autocast casts them instead."""
        return False

    def buffers(self, *, block: int, outside: int, layers: int, ranks: int, precision: Precision) -> float:
        """Predict the bytes of buffers; see `StrategyConfig`. Gradients lie in the buckets; a copy may travel."""
        return 0.0 if ranks == 1 or self.reduce_dtype is ReduceDtype.fp32 else self.bucket_mb * 2**19


def accelerator(cfg: DDPConfig, world: World) -> Accelerator:
    """Return Accelerate's wrapper of models for the process group that there is, whatever its environment says."""
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.utils import GradientAccumulationPlugin

    return Accelerator(
        cpu=world.device.type == "cpu",
        mixed_precision="no",
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        dynamo_backend="no",
        kwargs_handlers=[DistributedDataParallelKwargs(bucket_cap_mb=cfg.bucket_mb, gradient_as_bucket_view=True)],
    )


class DDP(TorchStrategy):
    """The five verbs over Accelerate's DistributedDataParallel, and over the module itself alone; see `Strategy`."""

    def __init__(self, cfg: DDPConfig, world: World, precision: Precision, compilation: CompileConfig) -> None:
        super().__init__(cfg, world, precision, compilation)
        self.reduce_dtype = cfg.reduce_dtype
        self.accelerator = accelerator(cfg, world) if world.size > 1 else None  # it takes half a second to import

    def setup(self, module: Objective, make_optimizer: Callable[[nn.Module], Optimizer]) -> nn.Module:
        if any(parameter.is_meta for parameter in module.parameters()):
            materialize(module, self.world.device)
        self.module = module
        self.optimizer = make_optimizer(module)
        self.share_matrices(whole, replica_ranks=1)
        self.prepare(module)
        module.forward = self.precision.autocast(self.world.device)(module.forward)
        self.wrapped = self._wrap(module)
        return self.wrapped

    def _wrap(self, module: Objective) -> nn.Module:
        if self.accelerator is None:
            return module
        with ddp_built():
            wrapped: Any = self.accelerator.prepare_model(module)
        if self.reduce_dtype is ReduceDtype.bf16:
            # A function of another name, because DDP refuses torch's own over gloo, which can do it (torch 2.13).
            wrapped.register_comm_hook(None, lambda group, bucket: bf16_compress_hook(group, bucket))  # noqa: PLW0108
        return wrapped

    def micro_step(self, *, last: bool) -> AbstractContextManager[None]:
        return nullcontext() if last or self.accelerator is None else self.accelerator.no_sync(self.wrapped)

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def step(self, lr_factor: float, clip_norm: float | None) -> Update:
        set_learning_rates(self.optimizer, lr_factor)
        self.scaler.unscale_(self.optimizer)
        gradients = [parameter.grad for parameter in self.module.parameters() if parameter.grad is not None]
        return self.update(gradient_norm(gradients).float(), clip_norm)

    def fragments(self) -> Iterator[Fragment]:
        """Whole tensors, each with its moments from one rank: the one with the fewest bytes so far."""
        load = [0] * self.world.size
        for name, tensor in named_tensors(self.module):
            owner = load.index(min(load))
            load[owner] += tensor.numel()
            if owner == self.world.rank:
                yield from self._whole(name, tensor)

    def replicated(self) -> Iterator[Fragment]:
        """Everything: each rank is a replica of all others."""
        for name, tensor in named_tensors(self.module):
            yield from self._whole(name, tensor)

    def _whole(self, name: str, tensor: Tensor) -> Iterator[Fragment]:
        kinds = {WEIGHT: tensor.detach(), **self.optimizer.state.get(tensor, {})}
        for kind, value in kinds.items():
            yield Fragment(name, kind, tuple(value.shape), 0, value.reshape(-1))

    def load_fragments(self, read: Reader) -> None:
        for name, tensor in named_tensors(self.module):
            for kind, shape in read.kinds(name).items():
                value = read(name, kind, 0, shape.numel()).reshape(shape).to(tensor.device)
                if kind == WEIGHT:
                    with torch.no_grad():
                        tensor.copy_(value)
                else:
                    self.optimizer.state[tensor][kind] = value

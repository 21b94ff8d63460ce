"""Sharded data parallelism through torch's FSDP2: each rank holds a part of every weight, gradient and moment.

Holds the strategy; torch's `fully_shard` gathers the weights of a block before they are used and reduces gradients.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from pretrain.checkpoint.base import WEIGHT, Fragment, Reader
from pretrain.distributed.world import World, ensure_group
from pretrain.errors import check
from pretrain.models.base import Model, named_tensors
from pretrain.objectives.base import Objective
from pretrain.optim.base import gradient_norm, set_learning_rates
from pretrain.optim.shared_matrices import Piece
from pretrain.registry import register
from pretrain.strategy.base import CommonConfig, Memory, ReduceDtype, TorchStrategy, Update
from pretrain.strategy.compile import CompileConfig
from pretrain.strategy.precision import Precision

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule

log = logging.getLogger(__name__)


@register("strategy", "fsdp2")
@dataclass(kw_only=True)
class FSDP2Config(CommonConfig):
    """Every rank holds a part of the weights, gradients and moments (torch's FSDP2, also HSDP)."""

    shard_ranks: int | None = None  # ranks that hold one replica between them (HSDP: those of a node); null: all
    reshard_after_forward: bool = True  # free a block's weights between its passes (ZeRO-3); false: keep them (ZeRO-2)
    accumulate_whole_gradients: bool = False  # reduce in the last micro-batch only: less traffic, 4 bytes a parameter
    cpu_offload: bool = False  # weights, gradients and moments lie in host memory, where the optimizer works, too

    def __post_init__(self) -> None:
        super().__post_init__()
        ranks = self.shard_ranks
        check(ranks is None or ranks >= 1, "strategy.shard_ranks", ranks, "at least 1, or null for all ranks")

    def check_machine(self, *, ranks: int, device_type: str, precision: Precision) -> None:
        """Refuse ranks that do not fall into whole replicas; see `StrategyConfig`."""
        rule = f"must divide the number of ranks, {ranks}; null shards over all of them"
        check(ranks % (self.shard_ranks or ranks) == 0, "strategy.shard_ranks", self.shard_ranks, rule)

    def build(self, *, world: World, precision: Precision, compilation: CompileConfig) -> FSDP2:
        """Return the strategy for this rank."""
        return FSDP2(self, world, precision, compilation)

    @property
    def swaps(self) -> bool:
        """Whether moments lie in files between steps."""
        return False

    @property
    def shards_weights(self) -> bool:
        """Whether a rank holds parts of the weights between passes."""
        return True

    def memory(self, parameters: int, *, ranks: int, precision: Precision) -> Memory:
        """Predict what a rank holds; see `StrategyConfig`. Blocks are gathered one or two at a time, on top of it."""
        held = parameters / (self.shard_ranks or ranks)
        gathered = 0 if self.reshard_after_forward else precision.dtype.itemsize * parameters
        gradients = self.reduce_dtype.dtype.itemsize * parameters if self.accumulate_whole_gradients else 4 * held
        return Memory(4 * held + gathered, gradients, 8 * held)

    @property
    def casts_weights(self) -> bool:
        """Whether the weights that compute have the precision of products, as the gathered ones have."""
        return True

    def buffers(self, *, block: int, outside: int, layers: int, ranks: int, precision: Precision) -> float:
        """Predict the bytes of gathered weights, and of gradients on their way; see `StrategyConfig`.

        When a backward pass begins: the weights outside of blocks and the head's gradient, which has at most as many
        elements; of the blocks the one in use and the next, which arrives in a buffer; a block's gradients and, in the
        type in which they travel, those of two.
        """
        half, reduced = precision.dtype.itemsize, self.reduce_dtype.dtype.itemsize
        gathered = 3 if self.reshard_after_forward else layers + 1
        return half * (2 * outside + gathered * block) + (half + 2 * reduced) * block


class FSDP2(TorchStrategy):
    """The five verbs over `fully_shard`; see `Strategy`.

    Parameters are DTensors cut along their first dimension: fp32, of which FSDP2 gathers copies in the precision of
    the forward pass, so that nothing needs autocast. Unlike under autocast the residual stream has that precision too;
    norms, the softmax and the loss compute in fp32 inside their kernels.
    """

    def __init__(self, cfg: FSDP2Config, world: World, precision: Precision, compilation: CompileConfig) -> None:
        from torch.distributed.device_mesh import init_device_mesh

        super().__init__(cfg, world, precision, compilation)
        self.cfg = cfg
        ensure_group(world)
        shard = cfg.shard_ranks or world.size
        axes = {"replicate": world.size // shard, "shard": shard} if shard < world.size else {"shard": shard}
        waits = cfg.accumulate_whole_gradients or shard < world.size  # for the last micro-batch, to reduce all at once
        if waits and cfg.reduce_dtype is ReduceDtype.bf16 and world.is_first:
            log.warning(
                "strategy.reduce_dtype=bf16: gradients of a step's micro-batches are also added up in bf16 here, where "
                "small ones are lost beside a sum of many; take few micro-batches a step, or fp32"
            )
        self.mesh = init_device_mesh(world.device.type, tuple(axes.values()), mesh_dim_names=tuple(axes))

    def setup(self, module: Objective, make_optimizer: Callable[[nn.Module], Optimizer]) -> nn.Module:
        from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy

        self.prepare(module)
        half = self.precision.dtype if self.precision.dtype != torch.float32 else None
        reduced = self.cfg.reduce_dtype.dtype
        pin = self.world.device.type == "cuda"
        options = {
            "mesh": self.mesh,
            # Inputs keep their precision: those of a block include the angles of rotary positions.
            "mp_policy": MixedPrecisionPolicy(half, reduced, cast_forward_inputs=False),
            "offload_policy": CPUOffloadPolicy(pin_memory=pin) if self.cfg.cpu_offload else OffloadPolicy(),
        }
        self.groups = _shard(module, self.cfg.reshard_after_forward, options)
        module.to_empty(device="cpu" if self.cfg.cpu_offload else self.world.device)
        self.module = self.groups[0]
        self.tensors = list(named_tensors(module))  # now, for a gathered module shows the gathered tensors instead
        self.optimizer = make_optimizer(module)
        self.share_matrices(self._piece, replica_ranks=self.mesh["shard"].size())
        return module

    def micro_step(self, *, last: bool) -> AbstractContextManager[None]:
        # Otherwise a rank adds up its part alone, and replicas (HSDP) add up theirs once.
        self.module.set_requires_gradient_sync(last or not self.cfg.accumulate_whole_gradients)
        self.module.set_requires_all_reduce(last)
        if not self.cfg.reshard_after_forward:
            self.module.set_reshard_after_backward(last)  # weights change only after the last backward pass
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def step(self, lr_factor: float, clip_norm: float | None) -> Update:
        set_learning_rates(self.optimizer, lr_factor)
        self.scaler.unscale_(self.optimizer)
        return self.update(self._gradient_norm().float(), clip_norm)

    def _gradient_norm(self) -> Tensor:
        """Return the norm of the whole gradient: ranks of a replica hold disjoint parts, replicas the same ones.

        Each rank adds up what the ranks of its replica have, in their order. The order in which a network would do it
        may differ between replicas, and then so would their weights.
        """
        parts = [self._part(tensor.grad).data for _, tensor in self.tensors if tensor.grad is not None]
        squares = torch.zeros(self.mesh["shard"].size(), dtype=torch.float64, device=self.world.device)
        squares[self.mesh.get_local_rank("shard")] = gradient_norm(parts).square()
        dist.all_reduce(squares, group=self.mesh.get_group("shard"))  # of numbers beside zeros: exact in any order
        return squares.sum().sqrt()

    def fragments(self) -> Iterator[Fragment]:
        """This rank's part of each tensor, from the first replica; what is not cut comes from rank 0."""
        first_replica = self.world.rank < self.mesh["shard"].size()
        for fragment, cut in self._held():
            if (first_replica and fragment.data.numel()) if cut else self.world.is_first:
                yield fragment

    def replicated(self) -> Iterator[Fragment]:
        """This rank's parts, which one rank of every replica holds (HSDP); nothing if there is one replica."""
        if self.mesh["shard"].size() < self.world.size:
            yield from (fragment for fragment, _ in self._held())

    def _held(self) -> Iterator[tuple[Fragment, bool]]:
        """All that this rank holds, and of each fragment whether it is a part of a cut tensor, perhaps an empty one."""
        for name, tensor in self.tensors:
            kinds = {WEIGHT: tensor.detach(), **self.optimizer.state.get(tensor, {})}
            for kind, value in kinds.items():
                part = self._part(value)
                yield Fragment(name, kind, tuple(value.shape), part.start, part.data.reshape(-1)), part.cut

    def load_fragments(self, read: Reader) -> None:
        for group in self.groups:
            group.reshard()  # an evaluation leaves some gathered
        self.optimizer.state.clear()
        for name, tensor in self.tensors:
            for kind, shape in read.kinds(name).items():
                value = tensor.detach()
                if kind != WEIGHT:
                    alike = shape == tensor.shape  # or a count of steps
                    value = torch.empty_like(value) if alike else torch.empty(shape, device=tensor.device)
                    self.optimizer.state[tensor][kind] = value
                part = self._part(value)
                part.data.copy_(read(name, kind, part.start, part.data.numel()).view_as(part.data))

    def _piece(self, matrix: nn.Parameter) -> Piece:
        part = self._part(matrix.detach())

        def own(tensor: Tensor) -> Tensor:
            return self._part(tensor.detach()).data.view(-1)

        return Piece(matrix.shape, part.start, part.data.numel(), matrix, own)

    def _part(self, tensor: Tensor) -> _Part:
        """Return what this rank holds of a tensor; rows are dealt out as `torch.chunk` does."""
        from torch.distributed.tensor import DTensor

        if not isinstance(tensor, DTensor):
            return _Part(tensor, 0, cut=False)
        shard = self.mesh["shard"]
        first_row = min(shard.get_local_rank() * -(-tensor.shape[0] // shard.size()), tensor.shape[0])
        return _Part(tensor.to_local(), first_row * tensor.shape[1:].numel(), cut=True)


class _Part(NamedTuple):
    """What one rank holds of a tensor."""

    data: Tensor  # whole rows of it, none for the last ranks of a small tensor; shares the tensor's memory
    start: int  # the first element, counted in the flattened whole tensor
    cut: bool  # False: every rank holds the whole tensor


def _shard(module: Objective, reshard_after_forward: bool, options: dict[str, Any]) -> list[FSDPModule]:
    """Cut the module into groups that are gathered and reduced together; return them as they are first used.

    Each block is a group, and so are the embedding and the head where they have weights of their own: the embedding's
    are free after its lookup, and nothing needs them in the backward pass; the head's gradients are reduced while the
    blocks' backward passes run. The rest is the root's: small layers, and a table that is embedding and head, which is
    gathered first and complete last.

    Each group gathers the next one's weights when it has its own: torch does so, too, but no earlier than the host
    comes to the next group, which is late where kernels are small. In the backward pass torch gathers ahead by itself.
    The embedding, which an encoder-decoder uses twice, leaves the first block to the root: what is gathered and not
    used stays, and would be stale after `load_fragments`.
    """
    from torch.distributed.fsdp import FSDPModule, fully_shard

    model = module.model
    groups = [fully_shard(block, reshard_after_forward=reshard_after_forward, **options) for block in model.blocks]
    first = groups[:1]
    head = _untied_head(model)
    if head is not None:
        groups.append(_shard_head(model, head, options))
        if isinstance(embedding := getattr(model, "embedding", None), nn.Embedding):
            lookup = fully_shard(embedding, reshard_after_forward=reshard_after_forward, **options)
            lookup.set_unshard_in_backward(False)
            first.insert(0, lookup)
    fully_shard(module, reshard_after_forward=False, **options)
    assert isinstance(module, FSDPModule)
    module.set_modules_to_forward_prefetch(first)
    for group, following in itertools.pairwise(groups):
        group.set_modules_to_forward_prefetch([following])
    return [module, *first[:-1], *groups]


def _untied_head(model: Model) -> nn.Module | None:
    """Return the module `head` of a model if it has a vocabulary projection that is no other module's weight."""
    head = getattr(model, "head", None)
    if not isinstance(head, nn.Module):
        return None
    named = list(model.named_parameters(remove_duplicate=False))
    own = {parameter for name, parameter in named if name.startswith("head.")}
    others = {parameter for name, parameter in named if not name.startswith("head.")}
    return head if own.isdisjoint(others) and any(parameter.ndim == 2 for parameter in own) else None


def _shard_head(model: Model, head: nn.Module, options: dict[str, Any]) -> FSDPModule:
    """Make the head a group, which is gathered when the hidden states leave the model.

    Objectives take the weights out of the head and never call it, so the hidden states pass through it instead: that
    way FSDP2 learns when the weights are needed, and when their gradients are complete.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    group = fully_shard(head, reshard_after_forward=False, **options)
    entry: Any = group
    entry.enter = torch.clone  # FSDP2 has a hook on what it returns, which does not bear views
    register_fsdp_forward_method(head, "enter")
    model.register_forward_hook(lambda model, inputs, hidden: entry.enter(hidden))
    return group

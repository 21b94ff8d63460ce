"""The five verbs over a DeepSpeed engine.

Holds how DeepSpeed 0.19 is driven and where it keeps its shards; its settings are in `zero`.

Two facts shape this file. First, DeepSpeed replaces the parameters that an optimizer was made for by its own flat fp32
shards, cut evenly over the ranks without regard to where a parameter begins. A checkpoint needs names and places, so
`ShardSlice` says which elements of which parameter lie where in a shard; moments have the shard's shape and are
sliced alike. Second, the weights that compute (half precision, perhaps gathered) are copies of these shards: whoever
writes to a shard must publish it (`_published`), or the next forward pass runs on old weights.
"""

from __future__ import annotations

import itertools
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pretrain.checkpoint.base import WEIGHT, Fragment, Reader
from pretrain.distributed.world import World
from pretrain.models.base import named_tensors
from pretrain.objectives.base import Objective
from pretrain.optim.base import set_learning_rates
from pretrain.optim.shared_matrices import Piece, SharesMatrices
from pretrain.strategy import zero_nvme
from pretrain.strategy.base import CommonConfig, TorchStrategy, Update
from pretrain.strategy.compile import CompileConfig
from pretrain.strategy.ddp import DDP
from pretrain.strategy.precision import FP16, Precision
from pretrain.strategy.zero_guard import Gate


def import_deepspeed(world: World) -> Any:
    """Import DeepSpeed for the device at hand, quiet, and without kernels that it would compile first.

    What it knows of the groups of an earlier run of this process goes: they do, too, and it would go on with them.
    """
    os.environ.setdefault("DS_ACCELERATOR", world.device.type)
    os.environ.setdefault("LOCAL_RANK", "0")  # it reads them from the environment alone
    if world.device.type == "cpu":  # else every reduction of ZeRO-3 starts `numactl` to count NUMA nodes
        os.environ.setdefault("LOCAL_SIZE", "1")
    import deepspeed

    deepspeed.logger.setLevel(logging.WARNING)
    # It calls collectives by the names that torch 2.13 renames; each of them would warn at every call.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    # On a CPU it compiles a shared-memory all-reduce for a minute before the first use; gloo does without.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if world.size == 1:
        deepspeed.utils.groups._release_process_group_references()
    return deepspeed


class ShardSlice(NamedTuple):
    """Elements [start, start + numel) of a flattened parameter, inside a flat fp32 shard that the optimizer updates."""

    start: int
    numel: int
    group: int  # DeepSpeed's number of the shard among this rank's
    shard: Tensor  # (elements,) fp32; the optimizer's state is kept by it, moments have its shape
    offset: int  # where the slice begins in the shard

    def of(self, values: Tensor) -> Tensor:
        """Return the slice's elements of the shard or of a moment, (numel,), as a view."""
        return values.narrow(0, self.offset, self.numel)


def slice_of_flat_group(optimizer: Optimizer, parameter: nn.Parameter) -> ShardSlice | None:
    """Return the slice under stages 1 and 2, None if other ranks hold all: a group is one flat tensor, cut evenly."""
    mapping: Any = getattr(parameter, "_hp_mapping", None)
    if mapping is None:
        return None
    [shard] = optimizer.param_groups[mapping.param_group_index]["params"]
    whole, own = mapping.lp_fragment_address, mapping.hp_fragment_address
    return ShardSlice(whole.start, whole.numel, mapping.param_group_index, shard, own.start)


def slice_of_parameter(zero: Any, parameter: nn.Parameter, rank: int) -> ShardSlice | None:
    """Return the slice under stage 3, None if it is all padding: each parameter is cut evenly, its end padded."""
    group, offset, padded = zero.grad_position[zero.get_param_id(parameter)]
    start = rank * padded
    numel = min(padded, parameter.ds_numel - start)  # pyright: ignore[reportAttributeAccessIssue]
    return ShardSlice(start, numel, group, zero.fp32_partitioned_groups_flat[group], offset) if numel > 0 else None


def slice_of_frozen(parameter: Tensor, rank: int) -> ShardSlice | None:
    """Return the slice of a frozen parameter under stage 3, in a shard of its own; None if it is all padding."""
    shard: Tensor = parameter.ds_tensor  # pyright: ignore[reportAttributeAccessIssue]
    start = rank * shard.numel()
    numel = min(shard.numel(), parameter.ds_numel - start)  # pyright: ignore[reportAttributeAccessIssue]
    return ShardSlice(start, numel, -1, shard, 0) if numel > 0 else None


class ShardedZeRO(TorchStrategy):
    """Stages 1 to 3; see `Strategy`."""

    def __init__(
        self,
        dictionary: dict[str, Any],  # DeepSpeed's configuration
        cfg: CommonConfig,
        world: World,
        precision: Precision,
        compilation: CompileConfig,
    ) -> None:
        super().__init__(cfg, world, precision, compilation)
        self.dictionary = dictionary
        self.stage: int = dictionary["zero_optimization"]["stage"]
        self.engine: Any = None
        self.zero: Any = None  # DeepSpeed's optimizer

    def setup(self, module: Objective, make_optimizer: Callable[[nn.Module], Optimizer]) -> nn.Module:
        deepspeed = import_deepspeed(self.world)
        optimizer = make_optimizer(module)  # while parameters have their own shapes
        self.module, self.optimizer = module, optimizer
        names = {parameter: name for name, parameter in module.named_parameters()}
        self.shapes = {name: tensor.shape for name, tensor in named_tensors(module)}
        self.prepare(module)
        if self.stage == 3:
            self._materialize_sharded(deepspeed, module)
        else:
            module.to_empty(device=self.world.device)
        born = dict(module.named_parameters())
        groups: dict[str, int] = {}
        for number, group in enumerate(optimizer.param_groups):
            groups |= {names[parameter]: number for parameter in group["params"]}
            group["params"] = [born[names[parameter]] for parameter in group["params"]]
        with _trusted(deepspeed.logger, optimizer):
            self.engine, self.zero, *_ = deepspeed.initialize(
                model=module, optimizer=optimizer, config=self.dictionary, dist_init_required=False
            )
        if isinstance(self.precision, FP16):
            self.zero.loss_scaler.min_scale = self.precision.min_scale  # its dictionary takes whole numbers alone
        self.gate = Gate(self.zero, self.stage)

        def piece(matrix: nn.Parameter) -> Piece:
            name = names[matrix]
            return self._piece(born[name], self.shapes[name], groups[name])

        self.share_matrices(piece, replica_ranks=self.world.size)
        return self.engine

    def _materialize_sharded(self, deepspeed: Any, module: Objective) -> None:
        """Give memory to one block or layer at a time, and leave each with this rank's shard before the next."""
        module.to(self.precision.dtype)
        zero = self.dictionary["zero_optimization"]
        if zero.get("offload_param", {}).get("device") == "nvme":  # by default each of five buffers has 100 M elements
            largest = max(shape.numel() for shape in self.shapes.values())
            zero["offload_param"]["buffer_size"] = -(-largest // self.world.size)
        layers = (part for part in module.modules() if any(True for _ in part.parameters(recurse=False)))
        groups = deepspeed.utils.groups
        swapper = None  # one for all parts: its buffers are locked memory
        for part in (*module.model.blocks, *layers):
            if next(part.parameters()).is_meta:
                part.to_empty(device=self.world.device)
                # The group of ZeRO++ is made by the first call, and made once in a process.
                group = groups._get_zero_param_intra_parallel_group() if zero["zero_hpz_partition_size"] > 1 else None
                options = {"zero_param_parallel_group": group, "param_swapper": swapper}
                swapper = deepspeed.zero.Init(part, config_dict_or_path=self.dictionary, **options).param_swapper

    def micro_step(self, *, last: bool) -> AbstractContextManager[None]:
        self.engine.set_gradient_accumulation_boundary(last)
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss, scale_wrt_gas=False)

    def step(self, lr_factor: float, clip_norm: float | None) -> Update:
        set_learning_rates(self.optimizer, lr_factor)
        self.zero.clip_grad = clip_norm or 0.0
        self.gate.begin(self.guard)
        self.engine.step()
        return self.told(self.gate.norm, self.gate.verdict)

    @property
    def scale_exhausted(self) -> bool:
        return self.gate.scale_exhausted

    def fragments(self) -> Iterator[Fragment]:
        """This rank's part of every tensor with its moments; a scalar comes from the rank that holds the first part."""
        if self.world.is_first:
            for name, tensor in self._whole():
                yield Fragment(name, WEIGHT, tuple(tensor.shape), 0, _full_precision(tensor.detach()).reshape(-1))
        for name, part in self._frozen():
            yield Fragment(name, WEIGHT, tuple(self.shapes[name]), part.start, _full_precision(part.of(part.shard)))
        for parts in self._parts().values():
            shard = parts[0][1].shard
            values = zero_nvme.stored(self.zero, shard, {WEIGHT: shard, **self.optimizer.state.get(shard, {})})
            for (name, part), (kind, value) in itertools.product(parts, values.items()):
                if value.shape == values[WEIGHT].shape:
                    yield Fragment(name, kind, tuple(self.shapes[name]), part.start, part.of(value))
                elif part.start == 0:
                    yield Fragment(name, kind, (), 0, value.reshape(-1))

    def replicated(self) -> Iterator[Fragment]:
        """Under stages 1 and 2 all that the module holds: the weights that compute. Shards and moments are held once.

        Under stage 3 nothing: every weight is cut, and gathered ones come from its shards.
        """
        for name, tensor in named_tensors(self.module) if self.stage < 3 else ():
            yield Fragment(name, WEIGHT, tuple(tensor.shape), 0, tensor.detach().reshape(-1))

    def load_fragments(self, read: Reader) -> None:
        with torch.no_grad(), self._published():
            for name, tensor in self._whole():
                tensor.copy_(read(name, WEIGHT, 0, tensor.numel()).reshape(tensor.shape))
            for name, part in self._frozen():
                part.of(part.shard).copy_(read(name, WEIGHT, part.start, part.numel))
            for group, parts in self._parts().items():
                with zero_nvme.updated(self.zero, group) if self.stage == 3 else nullcontext():
                    for name, part in parts:
                        self._load_part(name, part, read)

    def _load_part(self, name: str, part: ShardSlice, read: Reader) -> None:
        state = self.optimizer.state
        for kind, shape in read.kinds(name).items():
            if kind == WEIGHT:
                part.of(part.shard).copy_(read(name, WEIGHT, part.start, part.numel))
            elif shape:
                moment = state[part.shard].setdefault(kind, torch.zeros_like(part.shard))
                part.of(moment).copy_(read(name, kind, part.start, part.numel))
            else:
                state[part.shard][kind] = read(name, kind, 0, 1).reshape(()).to(part.shard.device)

    def _whole(self) -> Iterator[tuple[str, Tensor]]:
        """What every rank holds all of: buffers, and under stages 1 and 2 the parameters that do not learn."""
        for name, tensor in named_tensors(self.module):
            if not isinstance(tensor, nn.Parameter) or (self.stage < 3 and not tensor.requires_grad):
                yield name, tensor

    def _frozen(self) -> Iterator[tuple[str, ShardSlice]]:
        """This rank's parts of the parameters that do not learn, under stage 3: in the precision of the model."""
        for name, tensor in named_tensors(self.module) if self.stage == 3 else ():
            frozen = isinstance(tensor, nn.Parameter) and not tensor.requires_grad
            if frozen and (part := slice_of_frozen(tensor, self.world.rank)):
                yield name, part

    def _parts(self) -> dict[int, list[tuple[str, ShardSlice]]]:
        """This rank's parts of the parameters, with their names, by the shard that they are in."""
        parts: dict[int, list[tuple[str, ShardSlice]]] = {}
        for name, tensor in named_tensors(self.module):
            if isinstance(tensor, nn.Parameter) and tensor.requires_grad and (part := self._part(tensor)):
                parts.setdefault(part.group, []).append((name, part))
        return parts

    def _part(self, parameter: nn.Parameter) -> ShardSlice | None:
        if self.stage == 3:
            return slice_of_parameter(self.zero, parameter, self.world.rank)
        return slice_of_flat_group(self.optimizer, parameter)

    def _piece(self, parameter: nn.Parameter, shape: torch.Size, group: int) -> Piece:
        """Return this rank's piece of a matrix of the optimizer's parameter group; see `SharesMatrices`."""
        if part := self._part(parameter):
            return Piece(shape, part.start, part.numel, part.shard, part.of)
        if self.stage == 3:
            shard = self.zero.fp32_partitioned_groups_flat[
                self.zero.grad_position[self.zero.get_param_id(parameter)][0]
            ]
        else:
            [shard] = self.optimizer.param_groups[group]["params"]
        return Piece(shape, 0, 0, shard, lambda values: values.narrow(0, 0, 0))

    @contextmanager
    def _published(self) -> Iterator[None]:
        """After the block, the weights that compute are those of the shards, on every rank."""
        whole = self.zero.persistent_parameters if self.stage == 3 else []
        if whole:
            whole[0].partition(whole)
        yield
        if whole:
            whole[0].all_gather(whole)
        if self.stage == 3:
            self.zero.invalidate_secondary_tensor()  # the copies of ZeRO++
        else:
            self.zero.update_lp_params()

    def close(self) -> None:
        # Hooks of DeepSpeed's refer to engine and parameters for as long as the process lives (0.19).
        parameters = list(self.module.parameters())
        holders = list(parameters)
        if self.engine is not None:  # memory did not run out in `setup`
            self.engine.destroy()
            holders += [self.zero, self.engine]
        for parameter in parameters:  # some are gathered where memory ran out in a pass
            parameter.data, parameter.grad = parameter.data.new_empty(0), None
        for holder in holders:
            vars(holder).clear()

    def state(self) -> dict[str, float]:
        if not isinstance(self.precision, FP16):
            return self.guard.state()
        scaler = self.zero.loss_scaler
        since = scaler.cur_iter - scaler.last_overflow_iter - 1
        return {"scale": scaler.cur_scale, "_growth_tracker": since, **self.guard.state()}

    def load_state(self, state: dict[str, float]) -> None:
        self.guard.load_state(state)
        if "scale" in state and isinstance(self.precision, FP16):
            scaler = self.zero.loss_scaler
            scaler.cur_scale = state["scale"]
            scaler.last_overflow_iter = scaler.cur_iter - 1 - int(state["_growth_tracker"])


@contextmanager
def _trusted(logger: logging.Logger, optimizer: Optimizer) -> Iterator[None]:
    """Keep back DeepSpeed's warning of an optimizer that it does not know, where that one knows of its shards.

    DeepSpeed hands over flat pieces of parameters, which is wrong for an optimizer that looks at their shapes. One that
    is told what the pieces are of (`share_matrices`), as Muon is, gives the update of a single rank; for any other one
    the warning stands.
    """

    def passes(record: logging.LogRecord) -> bool:
        return "untested optimizer" not in record.msg

    if isinstance(optimizer, SharesMatrices):
        logger.addFilter(passes)
    try:
        yield
    finally:
        logger.removeFilter(passes)


def _full_precision(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


class ReplicatedZeRO(DDP):
    """Stage 0: whole replicas whose gradients DeepSpeed averages, with autocast and loss scaling as under ddp."""

    def __init__(
        self,
        dictionary: dict[str, Any],  # DeepSpeed's configuration
        cfg: CommonConfig,
        world: World,
        precision: Precision,
        compilation: CompileConfig,
    ) -> None:
        TorchStrategy.__init__(self, cfg, world, precision, compilation)  # Accelerate has no part in this
        self.dictionary = dictionary

    def _wrap(self, module: Objective) -> nn.Module:
        self.engine, *_ = import_deepspeed(self.world).initialize(
            model=module, optimizer=self.optimizer, config=self.dictionary, dist_init_required=False
        )
        return self.engine

    def micro_step(self, *, last: bool) -> AbstractContextManager[None]:
        self.engine.set_gradient_accumulation_boundary(last)
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(self.scaler.scale(loss), scale_wrt_gas=False)

"""Where DeepSpeed keeps this rank's part of a parameter and of its moments, for stages 1 to 3.

Holds addresses only (DeepSpeed 0.19); what is done with them is in `zero_engine`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer


class Part(NamedTuple):
    """Elements [start, start + numel) of a flattened parameter, inside a flat fp32 shard that the optimizer updates."""

    start: int
    numel: int
    group: int  # DeepSpeed's number of the shard among this rank's
    shard: Tensor  # (elements,) fp32; the optimizer's state is kept by it, moments have its shape
    offset: int  # where the part begins in the shard

    def of(self, values: Tensor) -> Tensor:
        """Return the part's elements of the shard or of a moment, (numel,), as a view."""
        return values.narrow(0, self.offset, self.numel)


def part_of_flat_group(optimizer: Optimizer, parameter: nn.Parameter) -> Part | None:
    """Return the part under stages 1 and 2: a parameter group is one flat tensor, cut evenly; None if all elsewhere."""
    mapping: Any = getattr(parameter, "_hp_mapping", None)
    if mapping is None:
        return None
    [shard] = optimizer.param_groups[mapping.param_group_index]["params"]
    whole, own = mapping.lp_fragment_address, mapping.hp_fragment_address
    return Part(whole.start, whole.numel, mapping.param_group_index, shard, own.start)


def part_of_parameter(zero: Any, parameter: nn.Parameter, rank: int) -> Part | None:
    """Return the part under stage 3: each parameter is cut evenly, the last part padded; None if all is padding."""
    group, offset, padded = zero.grad_position[zero.get_param_id(parameter)]
    start = rank * padded
    numel = min(padded, parameter.ds_numel - start)  # pyright: ignore[reportAttributeAccessIssue]
    return Part(start, numel, group, zero.fp32_partitioned_groups_flat[group], offset) if numel > 0 else None


def part_of_frozen(parameter: Tensor, rank: int) -> Part | None:
    """Return the part of a parameter without optimizer under stage 3, in a shard of its own; None if all is padding."""
    shard: Tensor = parameter.ds_tensor  # pyright: ignore[reportAttributeAccessIssue]
    start = rank * shard.numel()
    numel = min(shard.numel(), parameter.ds_numel - start)  # pyright: ignore[reportAttributeAccessIssue]
    return Part(start, numel, -1, shard, 0) if numel > 0 else None

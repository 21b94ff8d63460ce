"""Optimizers: which parameters decay, which are orthogonalised, and an update that broken gradients cannot reach.

Holds no schedule: each parameter group keeps its peak as `base_lr`, and a strategy sets `lr` from it every step.
"""

from __future__ import annotations

import inspect
import math
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pretrain.errors import check
from pretrain.models.base import Model
from pretrain.models.width_scaling import UNSCALED, WidthScaling

ParameterGroup = dict[str, Any]
"""A group of torch's optimizers: `params`, `lr` and options, with `name` and `base_lr` beside them."""

NORM_BLOCK = 1024  # elements whose squares are added up in fp32

_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)


class Partition(NamedTuple):
    """The trainable parameters of a module, each in exactly one list, in the module's order; a tied tensor once."""

    hidden: list[nn.Parameter]  # matrices in the blocks of a model, what Muon is made for
    outer: list[nn.Parameter]  # embeddings, heads and all else of two or more dimensions
    vectors: list[nn.Parameter]  # biases and the gains of norms


def partition(module: nn.Module) -> Partition:
    """Sort parameters by dimension and by the module that owns them, never by name.

    Matrices decay, embeddings among them unless they are `spared`, biases and norms do not: the custom since GPT-2.
    Call it while parameters have their own shapes, before an engine flattens them.
    """
    models = [part for part in module.modules() if isinstance(part, Model)]
    in_blocks = {part for model in models for part in model.blocks.modules()}
    parts = Partition([], [], [])
    seen: set[nn.Parameter] = set()
    for owner in module.modules():
        for parameter in owner.parameters(recurse=False):
            if parameter in seen or not parameter.requires_grad:
                continue
            seen.add(parameter)
            if parameter.ndim < 2 or isinstance(owner, _NORMS):
                parts.vectors.append(parameter)
            elif parameter.ndim == 2 and owner in in_blocks and not isinstance(owner, nn.Embedding):
                parts.hidden.append(parameter)
            else:
                parts.outer.append(parameter)
    return parts


def width_scaling(module: nn.Module) -> WidthScaling:
    """Return the scaling by the width of the models in a module, which all have the same."""
    found = {part.width_scaling for part in module.modules() if isinstance(part, Model)}
    assert len(found) <= 1, "models of one module that scale by width differently"
    return found.pop() if found else UNSCALED


def spared(module: nn.Module, *, decay_embeddings: bool) -> set[nn.Parameter]:
    """Return the matrices of a module that do not decay: none or, without `decay_embeddings`, its embeddings.

    These are the tables of tokens, positions and segments, and of distances in attention. A tied embedding is the
    vocabulary projection as well, which then does not decay either; one of its own decays. The rows of tokens that are
    not in a batch have no gradient, and decay alone moves them: with little left of them, norms after them have large
    gradients (OLMo 2, arXiv 2501.00656).
    """
    if decay_embeddings:
        return set()
    tables = (part for part in module.modules() if isinstance(part, nn.Embedding))
    return {parameter for table in tables for parameter in table.parameters(recurse=False)}


class OptimConfig(Protocol):
    """The settings of an optimizer."""

    def check(self, *, swaps: bool) -> None:
        """Raise `ConfigError` if the optimizer cannot run where its moments lie in files between steps: `swaps`."""
        ...

    def build(self, module: nn.Module) -> Optimizer:
        """Return the optimizer of the module's trainable parameters."""
        ...


class EagerOptimizer(Optimizer):
    """torch's optimizer, without the decorators that keep torch.compile out of its methods.

    It is never compiled, and the first call of one of them imports the compiler, for a second.
    """

    add_param_group = inspect.unwrap(Optimizer.add_param_group)
    zero_grad = inspect.unwrap(Optimizer.zero_grad)


def gradient_norm(gradients: list[Tensor]) -> Tensor:
    """Return the norm of all gradients together, () float64.

    Squares are added up in float64 on a GPU. On a CPU that costs a copy of every gradient: there they are added up in
    fp32 over blocks, and over these in float64. In fp32 alone torch adds them one by one, and is off by 2e-5 at half a
    million elements and by 4e-4 at eight million; over blocks by 1e-9 (torch 2.13). There squares have the range of
    fp32: a block whose norm is above 1.8e19 counts as infinite. Without any gradient the norm is 0.
    """
    if not gradients:
        return torch.zeros((), dtype=torch.float64)
    if gradients[0].device.type == "cpu":
        norms = torch.cat([norm for gradient in gradients for norm in _block_norms(gradient)])
        return torch.linalg.vector_norm(norms, dtype=torch.float64)
    foreach_norm: Any = torch._foreach_norm  # pyright: ignore[reportPrivateImportUsage]
    norms = foreach_norm(gradients, 2, dtype=torch.float64)  # one kernel, and nothing is copied
    return torch.linalg.vector_norm(torch.stack(norms))


def _block_norms(gradient: Tensor) -> list[Tensor]:
    """Return the norms of the gradient's blocks of `NORM_BLOCK` elements, and that of what is left, at least fp32."""
    flat = gradient.reshape(-1).to(torch.promote_types(gradient.dtype, torch.float32))
    whole = flat.numel() // NORM_BLOCK * NORM_BLOCK
    blocks, rest = flat[:whole].view(-1, NORM_BLOCK), flat[whole:]
    return [torch.linalg.vector_norm(blocks, dim=1), torch.linalg.vector_norm(rest, keepdim=True)]


def guarded_step(optimizer: Optimizer, accepted: Tensor) -> None:
    """Update if the gradients are accepted () bool; else weights, moments and step counts stay bit for bit.

    Fused AdamW and Muon learn it from a flag on the device, the way torch's GradScaler tells it, so the host waits for
    nothing. An optimizer that does not say that it heeds the flag costs one read of the decision.
    """
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer.found_inf = accepted.logical_not().float()  # pyright: ignore[reportAttributeAccessIssue]
        try:
            optimizer.step()
        finally:
            del optimizer.found_inf  # pyright: ignore[reportAttributeAccessIssue]
    elif accepted:
        optimizer.step()


def set_learning_rates(optimizer: Optimizer, factor: float) -> None:
    """Give every parameter group its peak learning rate times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def learning_rates(optimizer: Optimizer) -> dict[str, float]:
    """Return what the newest step used, by its names in records: `lr`, the largest rate of all parameter groups.

    Where groups differ also `lr_min`, the smallest, and `lr_factor`, the multiple of their peaks that all of them took.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    low, high = min(rates), max(rates)
    if low == high:
        return {"lr": high}
    return {"lr": high, "lr_min": low, "lr_factor": high / max(group["base_lr"] for group in optimizer.param_groups)}


def parameter_group(name: str, parameters: list[nn.Parameter], lr: float, weight_decay: float) -> ParameterGroup:
    """Return a group that starts at its peak learning rate `lr`, which stays beside it as `base_lr`."""
    return {"name": name, "params": parameters, "lr": lr, "base_lr": lr, "weight_decay": weight_decay}


def hidden_group(
    parameters: list[nn.Parameter], lr: float, weight_decay: float, factor: float, name: str = "hidden"
) -> ParameterGroup:
    """Return the group of matrices in blocks, whose learning rate muP multiplies by `factor`.

    Decay is a share of the learning rate: divided by the factor, it takes off as much per step as without.
    """
    return parameter_group(name, parameters, lr * factor, weight_decay / factor)


def check_positive(key: str, value: float) -> None:
    """Refuse a setting that is not above 0, or infinite."""
    check(0 < value < math.inf, key, value, "must be above 0, and finite")


def check_fraction(key: str, value: float) -> None:
    """Refuse a setting outside [0, 1)."""
    check(0 <= value < 1, key, value, "must be at least 0 and below 1")


def check_decay(value: float, *, embeddings: bool) -> None:
    """Refuse a negative weight decay, and one of nothing that leaves out `embeddings`."""
    check(0 <= value < math.inf, "optim.weight_decay", value, "must be 0 (no decay) or more, and finite")
    rule = "nothing decays with optim.weight_decay=0; leave it out, or set a decay"
    check(embeddings or value > 0, "optim.decay_embeddings", embeddings, rule)

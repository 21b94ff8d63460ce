"""AdamW, and the learning rates of layers under a layer decay.

Holds the optimizer's settings and its groups; `base` decides which parameters decay.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import torch
from torch import nn

from pretrain.errors import check
from pretrain.models.base import Model
from pretrain.optim.base import (
    EagerOptimizer,
    ParameterGroup,
    check_decay,
    check_fraction,
    check_positive,
    hidden_group,
    parameter_group,
    partition,
    spared,
    width_scaling,
)
from pretrain.registry import register


@register("optim", "adamw")
@dataclass(kw_only=True)
class AdamWConfig:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019), torch's fused kernel."""

    lr: float = 6e-4  # peak learning rate
    beta1: float = 0.9  # decay of the first moment, per step
    beta2: float = 0.95  # decay of the second moment, per step
    eps: float = 1e-8  # added to the root of the second moment
    weight_decay: float = 0.1  # share of a matrix taken off per step, times the learning rate
    decay_embeddings: bool = True  # whether embeddings decay; a tied one is the vocabulary projection, too
    layer_decay: float = 1.0  # learning rate of a layer over that of the next one; 1: all the same

    def __post_init__(self) -> None:
        check_positive("optim.lr", self.lr)
        check_fraction("optim.beta1", self.beta1)
        check_fraction("optim.beta2", self.beta2)
        check_positive("optim.eps", self.eps)
        check_decay(self.weight_decay, embeddings=self.decay_embeddings)
        rule = "must be above 0 and at most 1; 1 turns it off"
        check(0 < self.layer_decay <= 1, "optim.layer_decay", self.layer_decay, rule)

    def check(self, *, swaps: bool) -> None:
        """See `OptimConfig`: DeepSpeed swaps moments of Adam."""

    def build(self, module: nn.Module) -> FusedAdamW:
        """Return AdamW with the groups `decay` and `no_decay`; a group without parameters is left out.

        Under muP matrices in blocks are a group of their own, `hidden` (see `hidden_group`).

        With a layer decay there are as many of each as layers: what stands after the model learns at `lr`, a block n
        steps below at lr * layer_decay^n, the embeddings lowest (Clark et al. 2020, ELECTRA, appendix B).
        """
        hidden, outer, vectors = partition(module)
        factor, others = width_scaling(module).lr, spared(module, decay_embeddings=self.decay_embeddings)
        rest = [parameter for parameter in hidden + outer if parameter in others] + vectors
        hidden, outer = ([parameter for parameter in kind if parameter not in others] for kind in (hidden, outer))
        scaled, decaying = ([], hidden + outer) if factor == 1 else (hidden, outer)
        depths, top = _depths(module) if self.layer_decay < 1 else ({}, 0)
        groups = []
        for depth in range(top, -1, -1):
            lr = self.lr * self.layer_decay ** (top - depth)
            of_hidden, of_decaying, of_rest = (
                [parameter for parameter in parameters if depths.get(parameter, top) == depth]
                for parameters in (scaled, decaying, rest)
            )
            groups += [
                hidden_group(of_hidden, lr, self.weight_decay, factor),
                parameter_group("decay", of_decaying, lr, self.weight_decay),
                parameter_group("no_decay", of_rest, lr, 0.0),
            ]
        return FusedAdamW(groups, self.beta1, self.beta2, self.eps)


class FusedAdamW(EagerOptimizer, torch.optim.AdamW):
    """torch's fused AdamW, over the groups that have parameters."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))

    def __init__(self, groups: list[ParameterGroup], beta1: float, beta2: float, eps: float) -> None:
        filled = [group for group in groups if group["params"]]
        super().__init__(filled, betas=(beta1, beta2), eps=eps, fused=True)


def _depths(module: nn.Module) -> tuple[dict[nn.Parameter, int], int]:
    """Return how deep each parameter of the model inside the module lies, and the depth of those beside it."""
    [model] = [part for part in module.modules() if isinstance(part, Model)]
    return {parameter: model.depth(name) for name, parameter in model.named_parameters()}, model.top

"""Held-out evaluation: loss, perplexity and bits per byte.

Holds the measurement; when it happens is the loop's business, where it goes `tracking`'s.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from pretrain.data.base import Batch
from pretrain.distributed import World
from pretrain.errors import check


@dataclass(kw_only=True)
class EvalConfig:
    """How often and on how much held-out text a run is evaluated."""

    every: int = 500  # optimizer steps; 0 = never
    at_start: bool = True  # evaluate the initialisation too, so that progress has a beginning
    max_slots: int = 0  # slots of data.seq_len tokens evaluated each time; 0 = the whole held-out split

    def __post_init__(self) -> None:
        check(self.every >= 0, "eval.every", self.every, "0 (never) or a number of optimizer steps")
        check(self.max_slots >= 0, "eval.max_slots", self.max_slots, "0 (all) or a number of slots")


@torch.no_grad()
def evaluate(module: nn.Module, batches: Iterable[Batch], world: World) -> float:
    """Return the mean negative log-likelihood in nats a target, over all ranks' batches.

    Every rank must bring the same number of batches (sharded engines communicate in the forward pass); a batch
    without targets counts nothing.
    """
    module.eval()
    nll = torch.zeros((), dtype=torch.float64, device=world.device)
    targets = 0
    for batch in batches:
        nll += module(batch.to(world.device)).nll
        targets += batch.num_targets
    module.train()
    [targets] = world.sum_ints(targets)
    return world.sum_tensor(nll).item() / targets

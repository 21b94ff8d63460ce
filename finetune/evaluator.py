"""Passes of a fine-tuned model over a data set: the logits of each example in order, and the losses, on all ranks.

Holds the passes; `answering` says what an answer is, and the tasks what it means.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from finetune.data.batches import measuring_batches
from finetune.data.examples import Examples
from pretrain.data.batch import Batch
from pretrain.data.corpus import concatenated_ranges
from pretrain.distributed.world import World
from pretrain.errors import NumericalError
from pretrain.hub.heads import HeadKind
from pretrain.objectives.base import Loss
from pretrain.tracking.no_value import no_value
from pretrain.train.metrics import perplexity

_FIX = "lower optim.lr or use precision=bf16 or fp32, and train again; the steps before are saved"


class Answers(NamedTuple):
    """What a model with a head makes of E examples."""

    logits: list[np.ndarray]  # fp32, of each example: (C,), or (tokens, C) where every token has an answer
    loss: float  # mean over the targets; nan without any


class Total:
    """The sum over all targets of a value that each pass gives for its own, and the mean: exact in any order."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._values = [torch.zeros((), device=world.device)]  # of each pass, fp32; one transfer brings all

    def add(self, value: Tensor) -> None:
        """Add what one pass summed up, ()."""
        self._values.append(value.float())

    def mean(self, targets: int) -> float:
        """Return the mean over so many targets of all ranks; nan without any. A collective."""
        gathered = itertools.chain(*self._world.gather(torch.stack(self._values).tolist()))
        return math.fsum(gathered) / targets if targets else math.nan


def passes(
    module: nn.Module, examples: Examples, *, max_tokens: int, world: World
) -> Iterator[tuple[np.ndarray, Batch, Loss]]:
    """Yield which examples a pass of this rank was over, their batch, and what the module makes of it.

    A collective. `max_tokens` bounds the tokens of a pass. The module is in eval mode meanwhile.
    """
    trains = module.training
    module.eval()
    for chosen, batch in measuring_batches(examples, max_tokens=max_tokens, rank=world.rank, world_size=world.size):
        measured = module(batch.to(world.device))
        if len(chosen):  # else this rank has nothing left
            yield chosen, batch, measured
    module.train(trains)


@torch.no_grad()
def answers(
    module: nn.Module, examples: Examples, *, kind: HeadKind, outputs: int, max_tokens: int, world: World
) -> Answers:
    """Return the answers to all examples. A collective; what one rank would return, bit for bit.

    `outputs` is the width of the head, C; `max_tokens` bounds the tokens of a pass. Raises `NumericalError` for
    outputs that are not finite: the largest of them would be an answer like any other.
    """
    # Example e has the rows offsets[e] to offsets[e + 1] of the outputs of all examples.
    offsets = np.arange(len(examples) + 1) if kind is HeadKind.sequence else examples.offsets
    found = torch.zeros(int(offsets[-1]), outputs, device=world.device)
    loss, targets = Total(world), 0
    for chosen, batch, measured in passes(module, examples, max_tokens=max_tokens, world=world):
        assert measured.logits is not None
        places = concatenated_ranges(offsets[chosen], offsets[chosen + 1] - offsets[chosen])
        found[torch.from_numpy(places).to(world.device)] = measured.logits
        loss.add(measured.nll)
        targets += batch.num_targets
    [targets] = world.sum_ints(targets)
    together = world.sum_tensor(found).cpu().numpy()  # each row is one rank's, and zeros everywhere else
    if broken := int((~np.isfinite(together)).any(axis=1).sum()):
        raise NumericalError(f"{broken} of {len(together)} outputs of the model are not finite; {_FIX}")
    parts = np.split(together, offsets[1:-1])
    return Answers([part[0] for part in parts] if kind is HeadKind.sequence else parts, loss.mean(targets))


@torch.no_grad()
def losses(module: nn.Module, examples: Examples, *, max_tokens: int, world: World) -> dict[str, float]:
    """Return `loss`, `perplexity` and `accuracy` over all targets. A collective; as one rank, bit for bit."""
    nll, correct, targets = Total(world), Total(world), 0
    for _, batch, measured in passes(module, examples, max_tokens=max_tokens, world=world):
        nll.add(measured.nll)
        correct.add(measured.correct)
        targets += batch.num_targets
    [targets] = world.sum_ints(targets)
    loss = nll.mean(targets)
    found = {"loss": loss, "perplexity": perplexity(loss), "accuracy": correct.mean(targets)}
    if undefined := [name for name, value in found.items() if not math.isfinite(value)]:
        no_value(*undefined, why="the model's losses are not finite numbers, or their exponential is beyond a float")
    return found

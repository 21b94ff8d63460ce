"""What a fine-tuned model answers to a data set: logits of every example, over all ranks, in the data set's order.

Holds the passes through the model; tasks interpret the logits.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from finetune.data.batches import measuring_batches
from finetune.data.examples import Examples
from finetune.tasks.base import Encoded, TaskConfig
from pretrain.data.corpus import concatenated_ranges
from pretrain.distributed.world import World
from pretrain.errors import NumericalError
from pretrain.hub.family import HeadKind
from pretrain.tracking.no_value import no_value

_FIX = "lower optim.lr or use precision=bf16 or fp32, and train again; the steps before are saved"


class Answers(NamedTuple):
    """What a model makes of E examples."""

    logits: list[np.ndarray]  # fp32, of each example: (C,), or (tokens, C) where every token has an answer
    loss: float  # mean over the targets; nan without any


@torch.no_grad()
def answers(
    module: nn.Module, examples: Examples, *, kind: HeadKind, outputs: int, max_tokens: int, world: World
) -> Answers:
    """Return the answers to all examples. A collective; what one rank would return, bit for bit.

    `outputs` is the width of the head, C; `max_tokens` bounds the tokens of a batch. Raises `NumericalError` for
    outputs that are not finite: the largest of them would be an answer like any other.
    """
    trains = module.training
    module.eval()
    # Example e has the rows offsets[e] to offsets[e + 1] of the outputs of all examples.
    offsets = np.arange(len(examples) + 1) if kind is HeadKind.sequence else examples.offsets
    found = torch.zeros(int(offsets[-1]), outputs, device=world.device)
    losses, targets = [torch.zeros((), device=world.device)], 0  # of each batch
    for chosen, batch in measuring_batches(examples, max_tokens=max_tokens, rank=world.rank, world_size=world.size):
        measured = module(batch.to(world.device))
        if not len(chosen):  # this rank has nothing left
            continue
        assert measured.logits is not None
        places = concatenated_ranges(offsets[chosen], offsets[chosen + 1] - offsets[chosen])
        found[torch.from_numpy(places).to(world.device)] = measured.logits
        losses.append(measured.nll.float())
        targets += batch.num_targets
    module.train(trains)
    [targets] = world.sum_ints(targets)
    gathered = itertools.chain(*world.gather(torch.stack(losses).tolist()))
    loss = math.fsum(gathered) / targets if targets else math.nan  # exact: in any order the same
    together = world.sum_tensor(found).cpu().numpy()  # each row is one rank's, and zeros everywhere else
    if broken := int((~np.isfinite(together)).any(axis=1).sum()):
        raise NumericalError(f"{broken} of {len(together)} outputs of the model are not finite; {_FIX}")
    parts = np.split(together, offsets[1:-1])
    return Answers([part[0] for part in parts] if kind is HeadKind.sequence else parts, loss)


def measure(
    module: nn.Module, task: TaskConfig, encoded: Encoded, names: list[str], *, max_tokens: int, world: World
) -> dict[str, float]:
    """Return the task's metrics of a data set, and its `loss`. A collective; see `answers`."""
    kind, outputs = task.kind, len(names)
    found = answers(module, encoded.examples, kind=kind, outputs=outputs, max_tokens=max_tokens, world=world)
    if not math.isfinite(found.loss):
        no_value("loss", why="no example has a target" if math.isnan(found.loss) else "it is too large for fp32")
    return {"loss": found.loss, **task.measure(encoded, found.logits, names)}

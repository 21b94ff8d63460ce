"""The training loop.

Holds the algorithm alone: models, data, engines, sinks and files come in as protocols and callables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import nn

from pretrain.commands import StopRequest
from pretrain.data.batch import Batch
from pretrain.distributed.world import World
from pretrain.errors import Preempted, check
from pretrain.strategy.base import Strategy
from pretrain.train.metrics import StepMeter

AUTO = "auto"  # a micro-batch of as many sequences as fit


@dataclass(kw_only=True)
class TrainConfig:
    """How long and in which batches a run trains."""

    EITHER: ClassVar = ("micro_batch_size", "micro_batch_tokens")  # one thing: `settings.alternatives`

    steps: int = 1000  # optimizer steps of the whole run
    batch_size: int = 32  # sequences (slots of data.seq_len tokens) in one optimizer step, over all ranks
    micro_batch_size: int | str | None = None  # sequences in one pass of one rank; auto: as many as fit; null: 8
    micro_batch_tokens: int | None = None  # the same as tokens at most, in place of it; null: it counts sequences
    clip_norm: float | None = 1.0  # largest global gradient norm; null = no clipping
    max_skipped: int = 10  # optimizer steps in a row whose update may be skipped

    def __post_init__(self) -> None:
        check(self.steps >= 1, "train.steps", self.steps, "at least 1 optimizer step")
        check(self.batch_size >= 1, "train.batch_size", self.batch_size, "at least 1 sequence")
        size, tokens = self.micro_batch_size, self.micro_batch_tokens
        counted = size in (AUTO, None) if isinstance(size, str | None) else size >= 1
        quotes = ", and a number without quotes" if isinstance(size, str) and size.isdigit() else ""
        check(counted, "train.micro_batch_size", size, f"at least 1 sequence, auto or null{quotes}")
        check(tokens is None or tokens >= 1, "train.micro_batch_tokens", tokens, "at least 1 token, or null")
        rule = f"train.micro_batch_size={size} says it as well; leave out one of the two"
        check(tokens is None or size is None, "train.micro_batch_tokens", tokens, rule)
        check(self.clip_norm is None or self.clip_norm > 0, "train.clip_norm", self.clip_norm, "above 0, or null")
        check(self.max_skipped >= 0, "train.max_skipped", self.max_skipped, "0 or more optimizer steps")


@dataclass(kw_only=True)
class LogConfig:
    """How often metrics are read from the device and written."""

    every: int = 10  # optimizer steps

    def __post_init__(self) -> None:
        check(self.every >= 1, "log.every", self.every, "at least 1 optimizer step")


@dataclass
class TrainState:
    """Where a run stands. Data, masks, dropout and learning rate are functions of `step` and of the configuration."""

    step: int = 0  # optimizer steps taken
    tokens: int = 0  # tokens that went through the model


class Hooks(Protocol):
    """What the loop calls when it is due. All ranks call each hook at the same step."""

    meter: StepMeter
    log_every: int  # optimizer steps, as the next one
    evaluate_every: int  # 0 = never

    def log(self, state: TrainState) -> None: ...

    def evaluate(self, state: TrainState) -> object: ...

    def save(self, state: TrainState, *, required: bool) -> None: ...  # required: no later save could make up for it

    def settle(self) -> None: ...  # at every step: what saves have left to do, or failed at, since they returned

    def is_due(self, state: TrainState) -> bool: ...  # to be saved

    def end_early(self) -> bool: ...  # asked once a step


def train(
    module: nn.Module,
    strategy: Strategy,
    steps: Iterable[list[Batch]],
    schedule: Callable[[int], float],
    state: TrainState,
    *,
    cfg: TrainConfig,
    seed: int,
    world: World,
    hooks: Hooks,
    stop: StopRequest,
) -> None:
    """Take one optimizer step for each list of micro-batches in `steps` (this rank's share of the global batch).

    The loss of a step is the sum over its targets divided by the number of targets in the whole global batch; engines
    average gradients over ranks, hence the factor `world.size`. The last step is logged, evaluated and saved, one with
    which hooks end the run early is saved. Raises `Preempted` once a stop request is honoured: with the step under way
    when it comes, or the one after.
    """
    for micro_batches in steps:
        torch.manual_seed(hash((seed, state.step, world.rank)))  # dropout: a function of the step, so resume is exact
        counts = [(batch.num_targets, batch.num_tokens) for batch in micro_batches]
        # What ranks tell each other in a step travels together; a request to stop that comes later waits for the next.
        targets, tokens, stops = world.sum_ints(*map(sum, zip(*counts, strict=True)), int(stop.received))
        for number, batch in enumerate(micro_batches, start=1):
            with strategy.micro_step(last=number == len(micro_batches)):
                loss = module(batch.to(world.device))
                strategy.backward(loss.total * (world.size / max(targets, 1)))
            hooks.meter.add(loss.nll, loss.labels)
        hooks.meter.end_step(strategy.step(schedule(state.step), cfg.clip_norm), targets)
        state.step += 1
        state.tokens += tokens

        last = state.step == cfg.steps
        hooks.settle()
        if last or state.step % hooks.log_every == 0:
            hooks.log(state)
        if hooks.evaluate_every and (last or state.step % hooks.evaluate_every == 0):
            hooks.evaluate(state)
        last = last or hooks.end_early()
        if last or stops or hooks.is_due(state):
            hooks.save(state, required=last or bool(stops))
        if last:
            return
        if stops:
            raise Preempted(f"stopped: step {state.step} of {cfg.steps} is saved; the same command resumes")

"""Held-out evaluation: loss, perplexity and bits per byte.

Holds the measurement; the loop decides when it happens, and `tracking` where it goes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn

from pretrain.data.batch import Batch, Examples
from pretrain.data.loader import evaluation_batches
from pretrain.data.stream import HeldOut
from pretrain.distributed.world import World
from pretrain.errors import DataError, check
from pretrain.models.base import ModelKind
from pretrain.objectives.base import ObjectiveConfig
from pretrain.tracking.no_value import no_value
from pretrain.train.metrics import SENTENCES, bits_per_byte, perplexity

SAMPLE_TOKENS = 32


@dataclass(kw_only=True)
class EvalConfig:
    """How often and on how much held-out text a run is evaluated."""

    every: int = 500  # optimizer steps; 0 = never
    at_start: bool = True  # evaluate the initialisation too, so that progress has a beginning
    max_slots: int = 0  # slots of data.seq_len tokens evaluated each time; 0 = the whole held-out split
    samples: list[str] = field(default_factory=list)  # texts that each evaluation continues, by the likeliest tokens
    sample_tokens: int = SAMPLE_TOKENS  # tokens that are added to each of them, fewer where the model ends the document
    choices: list[str] = field(default_factory=list)  # JSON lines files of multiple-choice questions to be answered
    patience: int | None = None  # evaluations without a lower held-out loss that end the run; null: none does
    save_best: bool | None = None  # save a step whose held-out loss is the lowest so far; null: where patience is set

    def __post_init__(self) -> None:
        check(self.every >= 0, "eval.every", self.every, "0 (never) or a number of optimizer steps")
        check(self.max_slots >= 0, "eval.max_slots", self.max_slots, "0 (all) or a number of slots")
        for text in self.samples:
            whole = text.encode(errors="ignore").decode() == text
            check(whole, "eval.samples", ascii(text), "has half a character, a surrogate of UTF-16; name a text")
        check(self.sample_tokens >= 1, "eval.sample_tokens", self.sample_tokens, "at least 1 token")
        rule = "there are no eval.samples to be continued; name some, or leave this out"
        unused = not self.samples and self.sample_tokens != SAMPLE_TOKENS
        check(not unused, "eval.sample_tokens", self.sample_tokens, rule)
        check(self.patience is None or self.patience >= 1, "eval.patience", self.patience, "1 or more, or null")
        check(self.every > 0 or not self.needed, "eval.every", self.every, f"{self.needed} needs evaluations; set it")

    @property
    def needed(self) -> str:
        """The settings that mean something only where the run is evaluated, "" where none is set."""
        return " and ".join(
            f"eval.{key}" for key in ("samples", "choices", "patience", "save_best") if getattr(self, key)
        )

    @property
    def saves_best(self) -> bool:
        """Whether an evaluation that is the best so far is followed by a save."""
        return self.patience is not None if self.save_best is None else self.save_best


def held_out_evaluator(
    module: nn.Module,
    objective: ObjectiveConfig,
    held_out: HeldOut,
    examples: Examples,
    *,
    micro_batch_size: int,  # slots
    max_slots: int,  # 0 = all
    world: World,
) -> Evaluator:
    """Return what measures a module on held-out text."""
    batches = partial(
        evaluation_batches,
        held_out,
        examples,
        micro_batch_size=micro_batch_size,
        rank=world.rank,
        world_size=world.size,
        max_slots=max_slots,
        source=objective.kind is ModelKind.encoder_decoder,
    )
    bytes_per_target = held_out.text_bytes / max(held_out.num_targets, 1) if objective.covers_text else None
    return Evaluator(module=module, batches=batches, bytes_per_target=bytes_per_target, world=world)


@dataclass
class Evaluator:
    """Measures a module on the same held-out batches again and again. A collective: every rank calls it."""

    module: nn.Module
    batches: Callable[[], Iterable[Batch]]  # this rank's batches, as many on every rank; anew at each call
    bytes_per_target: float | None  # UTF-8 bytes of held-out text that a target stands for, on average, if it does
    world: World

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        """Return `loss` in nats a target, `perplexity`, `accuracy` and `bits_per_byte`, over all ranks' batches.

        A batch without targets counts nothing; raises `DataError` if no batch has any. Accuracy is the share of targets
        that the model holds likeliest. Bits per byte are exact when the whole split is evaluated. Where sequences have
        labels, `sentence_loss` in nats a label and `sentence_accuracy` measure these. Where tokens are replaced,
        `replaced_accuracy` is the share of those that the model told from the others.
        """
        self.module.eval()
        sums = torch.zeros(7, dtype=torch.float64, device=self.world.device)
        targets = 0
        for batch in self.batches():
            measured = self.module(batch.to(self.world.device))
            sums[:2] += torch.stack([measured.nll, measured.correct])
            if measured.labels is not None:
                sums[2:5] += measured.labels
            if measured.replaced is not None:
                sums[5:] += measured.replaced
            targets += batch.num_targets
        self.module.train()
        [targets] = self.world.sum_ints(targets)
        if not targets:
            raise DataError(
                "data.prepare.held_out: nothing in the held-out text is a target, so that its loss is no number; "
                "hold out more text, or set eval.every=0"
            )
        nll, correct, label_nll, labels_right, labels, told, replaced = self.world.sum_tensor(sums).tolist()
        loss = nll / targets
        found = {"loss": loss, "perplexity": perplexity(loss), "accuracy": correct / targets}
        if labels:
            found |= dict(zip(SENTENCES, (label_nll / labels, labels_right / labels), strict=True))
        if replaced:
            found["replaced_accuracy"] = told / replaced
        if self.bytes_per_target is not None:
            found["bits_per_byte"] = bits_per_byte(loss, num_targets=1, text_bytes=self.bytes_per_target)
        if undefined := [name for name, value in found.items() if not math.isfinite(value)]:
            broken = "the model's losses on held-out text are not finite numbers"
            no_value(*undefined, why="e to the loss is beyond a float" if math.isfinite(loss) else broken)
        return found

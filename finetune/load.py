"""A run of fine-tuning, opened to be used: its model, its tokenizer, its task and what its outputs are called.

Holds the opening, and which settings may be overridden then; `evaluator` runs the model.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from finetune.config import FINETUNE, FinetuneConfig
from finetune.evaluator import Answers, answers
from finetune.model.base import FineTuned
from finetune.run import build_module
from finetune.tasks.base import Encoded, TaskConfig
from pretrain.checkpoint.commit import step_number
from pretrain.checkpoint.load import restore_weights
from pretrain.compose import compose_run
from pretrain.distributed.world import World, device_type
from pretrain.errors import ConfigError, check
from pretrain.report.history import load
from pretrain.train.run_dir import read_record
from pretrain.trained.run_files import network_of, step_of, tokenizer_of
from pretrain.trained.source import fitting

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A fine-tuned model at one of its steps, in one process."""

    cfg: FinetuneConfig
    record: dict[str, Any]  # run.json
    network: Any  # configuration of the model
    module: FineTuned
    tokenizer: Tokenizer
    step: Path  # directory of the checkpoint

    @property
    def names(self) -> list[str]:
        """The names of the head's outputs."""
        return self.record["names"]

    @property
    def number(self) -> int:
        """The number of the step."""
        return step_number(self.step)

    def encode(self, source: str, *, labelled: bool) -> Encoded:
        """Read a data set, by a name from `typed_name`, and encode it as training did. Raises what the task raises."""
        task = self.cfg.task
        return task.encode(task.records(source, labelled=labelled), self.tokenizer, self.names)

    def answers(self, encoded: Encoded, max_tokens: int) -> Answers:
        """Return what the model makes of a data set, `max_tokens` tokens at a time."""
        world = World(rank=0, size=1, device=torch.device(device_type()))
        kind, outputs = self.cfg.task.kind, len(self.names)
        module = self.module.to(world.device)
        return answers(module, encoded.examples, kind=kind, outputs=outputs, max_tokens=max_tokens, world=world)


def open_trained(run: Path, step: int | None = None, overrides: Sequence[str] = ()) -> Trained:
    """Open a run at a saved step, or else at its best one, or the newest of a run that has not ended.

    The task's settings are the run's, with what measuring the validation set has found at the step where that was left
    to it, and then with `overrides` (KEY=VALUE), which may change those that learning did not depend on.

    Raises `ConfigError` for a directory that is no run of fine-tuning and for an override that is refused,
    `CheckpointError` for a run without that step.
    """
    cfg, record = compose_run(run, FINETUNE), read_record(run, "vocab_size", "document_frame", "names", "name")
    place = step_of(run, World.alone(), record.get("best_step") if step is None else step)
    changed = _changed(cfg.task, overrides)
    if changes := [*_found(run, place, set(cfg.task.tuned_settings) - changed), *overrides]:
        batches = "train.max_tokens=${task.max_tokens}"  # of training, which must fit; not used here
        cfg = compose_run(run, FINETUNE, [batches, *changes])
    network = network_of(run)
    rule = f"{run} sees sequences of at most {network.max_seq_len} tokens; lower it"
    check(cfg.task.max_tokens <= network.max_seq_len, "task.max_tokens", cfg.task.max_tokens, rule)
    module = build_module(cfg, network, record["vocab_size"], record["names"])
    restore_weights(place, module)
    tokenizer = fitting(tokenizer_of(run), record["vocab_size"], run / "tokenizer.json")
    return Trained(cfg=cfg, record=record, network=network, module=module, tokenizer=tokenizer, step=place)


def _changed(task: TaskConfig, overrides: Sequence[str]) -> set[str]:
    """Return the names of the task's settings that overrides change. Raises `ConfigError` for one that none may."""
    names = set()
    for override in overrides:
        key = override.partition("=")[0]
        name = key.removeprefix("task.").partition(".")[0]
        if not key.startswith("task."):
            raise ConfigError(f"--set {override}: not a setting of the task; only those can be set here")
        if name in task.fixed:
            raise ConfigError(
                f"--set {override}: the run was trained with its own task.{name}, which stays; leave it out"
            )
        names.add(name)
    return names


def _found(run: Path, step: Path, names: Iterable[str]) -> Iterator[str]:
    """Yield settings with the values that measuring the validation set found for them at a step."""
    for name in names:
        rows = [row for row in load(run).evaluation if row["step"] == step_number(step) and name in row]
        if rows:
            yield f"task.{name}={rows[-1][name]!r}"
        else:
            log.warning("%s: was not measured, so task.%s is not known; --set task.%s=VALUE gives it", step, name, name)

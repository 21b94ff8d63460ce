"""A run of fine-tuning, opened to be used: its model, its tokenizer, its task and what its outputs are called.

Holds the opening; answers are `evaluation`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from finetune.config import FinetuneConfig
from finetune.entry import FINETUNE
from finetune.evaluation import Answers, answers
from finetune.objective import FineTuned
from finetune.run import build_module
from finetune.start import fitting_tokenizer
from finetune.tasks.base import Encoded
from pretrain.checkpoint import restore_weights, saved_step
from pretrain.distributed import World, device_type
from pretrain.entry import compose_run
from pretrain.registry import rebuilt
from pretrain.rundir import read_record


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

    def encode(self, source: str, *, labelled: bool) -> Encoded:
        """Read a data set and encode it as training did. Raises what the task raises."""
        task = self.cfg.task
        return task.encode(task.records(source, labelled=labelled), self.tokenizer, self.names)

    def answers(self, encoded: Encoded, max_tokens: int) -> Answers:
        """Return what the model makes of a data set, `max_tokens` tokens at a time."""
        world = World(rank=0, size=1, device=torch.device(device_type()))
        kind, outputs = self.cfg.task.kind, len(self.names)
        module = self.module.to(world.device)
        return answers(module, encoded.examples, kind=kind, outputs=outputs, max_tokens=max_tokens, world=world)


def open_trained(run: Path, step: int | None = None) -> Trained:
    """Open a run at a saved step, or else at its best one, or the newest of a run that has not ended.

    Raises `ConfigError` for a directory that is no run of fine-tuning, `CheckpointError` for one without that step.
    """
    cfg, record = compose_run(run, FINETUNE), read_record(run)
    settings = dict(record["network"])
    network = rebuilt(settings.pop("choice"), settings)
    module = build_module(cfg, network, record["vocab_size"], record["names"]).to_empty(device="cpu")
    place = saved_step(run / "checkpoints", World.alone(), record.get("best_step") if step is None else step)
    restore_weights(place, module)
    tokenizer = fitting_tokenizer(run / "tokenizer.json", record["vocab_size"])
    return Trained(cfg=cfg, record=record, network=network, module=module, tokenizer=tokenizer, step=place)

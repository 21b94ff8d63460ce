"""What is compared in fine-tuning: a task, its hyper-parameters, and the command by which each contestant learns it.

Holds no command line and no tables, which are in `duel`; processes are in `rounds`, the Trainer's side in `peers/`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.contestants import PEERS
from bench.rounds import ROOT, Runner, environment

NEVER = 10**9  # steps


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is alike, beside AdamW's own defaults, a linear decay to 0, gradients clipped at 1, and fp32."""

    batch: int  # sequences in an optimizer step
    lr: float  # peak learning rate
    weight_decay: float  # of matrices, not of biases and norms
    epochs: float  # of whole runs
    max_tokens: int  # of a sequence
    dropout: float = 0.1  # probability, of all but attention weights
    attention_dropout: float = 0.1  # probability, of attention weights


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is learnt, and by which commands."""

    unit: str  # what a step has `batch` of
    scores: list[str]  # metrics, by the names that both sides give them
    percent: bool = False  # whether scores are of 100 already, and not of 1
    headwater: list[str]  # overrides
    peer: list[str]  # script in peers/, and options of its own
    batching: list[str]  # of the peer, its recipe's first
    limits: tuple[str, ...] = ("task.max_tokens",)  # Headwater's settings that take the recipe's `max_tokens`
    same: str = "trainer-padded"  # the contestant whose steps are Headwater's

    @property
    def contestants(self) -> list[str]:
        """Return all names."""
        return ["headwater", *(f"trainer-{batching}" for batching in self.batching)]


@dataclass(frozen=True, kw_only=True)
class Arena:
    """One task, one model and one data set."""

    task: Task
    recipe: Recipe
    model: Path
    train: Path
    test: Path
    work: Path
    threads: int
    order: Path | None = None  # JSON list of examples that the peer takes one after another; None: it shuffles

    def runner(self, name: str) -> Runner:
        """Return a contestant, ready to start; none gets to the end of so many epochs."""
        lines = self.lines_of("speed") if name == "headwater" else self.work / name / "out.txt"
        command = self.command(name, run="speed", seed=1, epochs=100, measured=False)
        return Runner(command, self.work / name, lines, self.threads)

    def score(self, name: str, seed: int) -> tuple[dict[str, float], float]:
        """Return the scores after the last step of a whole run, and the seconds that it took from its start."""
        run = f"seed-{seed}"
        began = time.perf_counter()
        rows = self.finish(name, run, seed=seed, epochs=self.recipe.epochs, measured=True)
        seconds = time.perf_counter() - began
        return {score: rows[-1][score] for score in self.task.scores}, seconds

    def finish(self, name: str, run: str, **options: Any) -> list[dict[str, Any]]:
        """Let a contestant run to its end, with the options of `command`; return the JSON lines that it wrote."""
        folder = self.work / f"{name}-{run}"
        folder.mkdir()
        command = self.command(name, run=run, **options)
        with (folder / "out.txt").open("w") as out, (folder / "errors.txt").open("w") as errors:
            done = subprocess.run(command, cwd=ROOT, env=environment(self.threads), stdout=out, stderr=errors)
        if done.returncode:
            raise SystemExit(f"{name}: exit code {done.returncode}\n{(folder / 'errors.txt').read_text()[-2000:]}")
        lines = self.lines_of(run) if name == "headwater" else folder / "out.txt"
        return [json.loads(line) for line in lines.read_text().splitlines() if line.startswith('{"')]

    def lines_of(self, run: str) -> Path:
        """Return where Headwater writes what it measures of a run."""
        return self.work / "runs" / run / "metrics.jsonl"

    def command(self, name: str, *, run: str, seed: int, epochs: float, measured: bool) -> list[str]:
        """Return the command by which a contestant fine-tunes; Headwater keeps the `run` by this name."""
        recipe = self.recipe
        if name == "headwater":
            return [
                *(sys.executable, "-m", "finetune", *self.task.headwater, f"init_from={self.model}"),
                *(f"task.train={self.train}", f"task.validation={self.test}"),
                *(f"{limit}={recipe.max_tokens}" for limit in self.task.limits),
                *(f"train.batch_size={recipe.batch}", f"train.epochs={epochs}", f"seed={seed}"),
                *(f"optim.lr={recipe.lr}", f"optim.weight_decay={recipe.weight_decay}"),
                *(f"dropout={recipe.dropout}", f"attention_dropout={recipe.attention_dropout}"),
                f"attention={'sdpa' if recipe.attention_dropout else 'auto'}",
                *(f"run.root={self.work / 'runs'}", f"run.name={run}", "run.fresh=true"),
                *("log.every=1", f"eval.every={NEVER}"),  # the last step is measured whatever that says
            ]
        script, *options = self.task.peer
        return [
            *(sys.executable, str(PEERS / script), str(self.model), str(self.train)),
            *(str(self.test) if measured else "", "--batching", name.partition("-")[2], "--epochs", str(epochs)),
            *("--batch", str(recipe.batch), "--lr", str(recipe.lr), "--weight-decay", str(recipe.weight_decay)),
            *("--max-tokens", str(recipe.max_tokens), "--seed", str(seed)),
            *(["--order", str(self.order)] if self.order else []),
            *("--dropout", str(recipe.dropout), "--attention-dropout", str(recipe.attention_dropout), *options),
        ]

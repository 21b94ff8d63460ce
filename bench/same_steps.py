"""The check that fine-tuning is compared with its like: from the same weights, on the same examples, the same steps.

Holds the check: Headwater and the Trainer without dropout, whose losses and gradient norms must then agree step by
step. What scores leave to chance is the order of examples, dropout and the head's first values.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np

from bench.rounds import ROOT, environment
from bench.tuning import Arena
from finetune.data.batches import TrainingSteps
from finetune.trained import load

TOLERANCE = 1e-3  # relative; sums of fp32 in other orders grow apart from step to step
NOTHING = 1e-30  # a learning rate that changes no weight, and a share of an epoch that is one step
SEED = 1


def check_same_steps(arena: Arena, steps: int) -> None:
    """Print loss and gradient norm of each step of both. Raises `SystemExit` if they differ by more than rounding."""
    quiet = replace(arena, recipe=replace(arena.recipe, dropout=0.0, attention_dropout=0.0))
    order, epochs = _begin(quiet, steps)
    (arena.work / "order.json").write_text(json.dumps(order))
    ours = quiet.finish("headwater", "same", seed=SEED, epochs=epochs, measured=False)
    peer = replace(quiet, model=arena.work / "export", order=arena.work / "order.json")
    theirs = peer.finish(arena.task.same, "same", seed=SEED, epochs=1, measured=False)
    print(f"{'step':<6}{'loss':>12}{'Trainer':>12}{'gradient norm':>16}{'Trainer':>12}")
    apart = 0.0
    for number, (one, other) in enumerate(zip(_losses(ours), _losses(theirs), strict=True), 1):
        print(f"{number:<6}{one[0]:>12.6f}{other[0]:>12.6f}{one[1]:>16.6f}{other[1]:>12.6f}")
        apart = max(apart, *(abs(a - b) / b for a, b in zip(one, other, strict=True)))
    print(f"largest relative difference: {apart:.1e}")
    if apart > TOLERANCE:
        raise SystemExit(f"more than {TOLERANCE}: not the same steps")


def _begin(arena: Arena, steps: int) -> tuple[list[int], float]:
    """Export Headwater's weights before the first step, the head's first values among them.

    Return the examples of its first steps, one after another, and how many epochs these are.
    """
    still = replace(arena, recipe=replace(arena.recipe, lr=NOTHING))
    still.finish("headwater", "first", seed=SEED, epochs=NOTHING, measured=True)
    run = arena.lines_of("first").parent
    command = [sys.executable, "-m", "finetune.export", str(run), "--out", str(arena.work / "export")]
    subprocess.run(command, cwd=ROOT, env=environment(arena.threads), check=True, stdout=subprocess.DEVNULL)
    examples = load(run).encode(str(arena.train), labelled=True).examples
    epochs = steps * arena.recipe.batch / len(examples)
    taken = TrainingSteps(
        examples=examples,
        epochs=epochs,
        batch_size=arena.recipe.batch,
        max_tokens=arena.recipe.max_tokens,
        seed=SEED,
        rank=0,
        world_size=1,
    )
    return np.concatenate([taken.chosen(step) for step in range(taken.total)]).tolist(), epochs


def _losses(rows: list[dict]) -> list[tuple[float, float]]:
    return [(row["loss"], row["grad_norm"]) for row in rows if "grad_norm" in row]

"""Several seeds in one command: a run of its own for each, and what they reach together.

Holds the processes and the sum; a run itself is `run`'s.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
from pathlib import Path

from finetune.config import FinetuneConfig
from pretrain.distributed import world_size
from pretrain.errors import ConfigError, HeadwaterError
from pretrain.rundir import read_record
from pretrain.tracking.jsonl import METRICS_FILE


class SeedError(HeadwaterError):
    """A run of one seed that failed; it ends the command with its own exit code."""

    def __init__(self, seed: int, exit_code: int) -> None:
        super().__init__(f"seeds: the run with seed={seed} ended with exit code {exit_code}; the same command goes on")
        self.exit_code = exit_code


def fine_tune_each(cfg: FinetuneConfig, overrides: list[str]) -> None:
    """Fine-tune once for each of `cfg.seeds`, in a fresh process, and print what their best steps reach.

    `overrides` are those of the command line. Runs are named NAME-seed-S; those that have ended are not run again.
    Raises `SeedError` for the first that fails.
    """
    if world_size() > 1:
        raise ConfigError("seeds: under torchrun each seed is a command of its own; start one with seed=S for each")
    kept = [override for override in overrides if not override.startswith(("seeds=", "seed=", "run.name="))]
    found = []
    for seed in cfg.seeds:
        name = f"{cfg.run.name}-seed-{seed}"
        command = [sys.executable, "-m", "finetune", *kept, f"seed={seed}", f"run.name={name}"]
        code = subprocess.run(command, check=False).returncode
        if code:
            raise SeedError(seed, code)
        found.append(_best(Path(cfg.run.root).expanduser() / name))
    for metric in found[0]:
        values = [measured[metric] for measured in found]
        deviation = statistics.stdev(values) if len(values) > 1 else math.nan
        print(f"{metric}: {statistics.mean(values):.4f} ± {deviation:.4f} over {len(values)} seeds")


def _best(run: Path) -> dict[str, float]:
    """Return what was measured at the best step of a run that has ended."""
    step = read_record(run)["best_step"]
    rows = map(json.loads, (run / METRICS_FILE).read_text().splitlines())
    [row] = [row for row in rows if row["split"] == "validation" and row["step"] == step]
    return {key: value for key, value in row.items() if key not in ("step", "split", "tokens", "time")}

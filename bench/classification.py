"""Fine-tuning a classifier of sentences against the Hugging Face Trainer: speed side by side, and scores over seeds.

Holds the claim and its table; measuring is in `rounds`, the peer in `peers/trainer_classification`.

    python -m bench.classification MODEL TRAIN.tsv DEV.tsv
    python -m bench.classification MODEL TRAIN.tsv DEV.tsv --scores --seeds 1 2 3

MODEL is the directory of a released checkpoint, the files have the columns sentence and label, as GLUE's SST-2.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from bench.contestants import PEERS
from bench.rounds import ROOT, Runner, environment, interleaved, machine

BATCH, LR, WEIGHT_DECAY, MAX_TOKENS = 32, 5e-5, 0.01, 128
WARM_UP = 3  # steps of each contestant that do not count
CONTESTANTS = ["headwater", "trainer-padded", "trainer-grouped"]


@dataclass(frozen=True)
class Arena:
    """One model and one data set, and the command by which each contestant fine-tunes."""

    model: Path
    train: Path
    dev: Path
    work: Path
    threads: int

    def command(self, name: str, *, epochs: float, seed: int = 1, measured: bool = True) -> list[str]:
        """Return the command of a contestant."""
        dev = self.dev if measured else self.train
        if name == "headwater":
            return [
                *(sys.executable, "-m", "finetune", "task=classification", f"init_from={self.model}"),
                *(f"task.train={self.train}", f"task.validation={dev}", "task.columns.text=sentence"),
                *(f"task.max_tokens={MAX_TOKENS}", "train.max_tokens=4096", f"train.batch_size={BATCH}"),
                *(f"train.epochs={epochs}", f"optim.lr={LR}", f"optim.weight_decay={WEIGHT_DECAY}", f"seed={seed}"),
                *(f"run.root={self.work / 'runs'}", f"run.name=seed-{seed}", "run.fresh=true", "log.every=1"),
                *([] if measured else [f"eval.every={10**9}"]),
            ]
        return [
            *(sys.executable, str(PEERS / "trainer_classification.py"), str(self.model), str(self.train)),
            *(str(dev) if measured else "", "--batching", name.partition("-")[2], "--epochs", str(epochs)),
            *("--batch", str(BATCH), "--lr", str(LR), "--weight-decay", str(WEIGHT_DECAY)),
            *("--max-tokens", str(MAX_TOKENS), "--seed", str(seed)),
        ]

    def runner(self, name: str, seconds: int) -> Runner:
        """Return a contestant, ready to start; none reaches the end of so many epochs."""
        lines = self.work / "runs" / "seed-1" / "metrics.jsonl" if name == "headwater" else self.work / name / "out.txt"
        return Runner(self.command(name, epochs=seconds, measured=False), self.work / name, lines, self.threads)

    def score(self, name: str, seed: int, epochs: float) -> tuple[float, float]:
        """Return the accuracy after a whole run, and the seconds that it took from its start."""
        began = time.perf_counter()
        done = subprocess.run(
            self.command(name, epochs=epochs, seed=seed),
            cwd=ROOT,
            env=environment(self.threads),
            check=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        seconds = time.perf_counter() - began
        if name == "headwater":
            rows = (self.work / "runs" / f"seed-{seed}" / "metrics.jsonl").read_text().splitlines()
            return [row["accuracy"] for row in map(json.loads, rows) if row["split"] == "validation"][-1], seconds
        return json.loads(done.stdout.splitlines()[-1])["accuracy"], seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("train", type=Path)
    parser.add_argument("dev", type=Path)
    parser.add_argument("--rounds", type=int, default=20, help="steps of each contestant that count")
    parser.add_argument("--scores", action="store_true", help="whole runs and their accuracy instead of steps")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--epochs", type=float, default=1.0, help="of whole runs")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    paths = (path.resolve() for path in (args.model, args.train, args.dev))
    with tempfile.TemporaryDirectory() as folder:
        arena = Arena(*paths, Path(folder), args.threads)
        print(f"batches of {BATCH} sentences; {args.threads} threads; {machine('torch', 'transformers')}")
        if args.scores:
            _scores(arena, args.seeds, args.epochs)
        else:
            _speed(arena, args.rounds)


def _speed(arena: Arena, rounds: int) -> None:
    seconds = interleaved({name: arena.runner(name, seconds=100) for name in CONTESTANTS}, WARM_UP, rounds)
    # All sentences over all seconds: batches differ, so that a median step would favour short ones.
    speed = {name: BATCH * rounds / sum(seconds[name]) for name in CONTESTANTS}
    print(f"{'':<18}{'sentences/s':>12}{'median s':>10}   Headwater's time over this one's")
    for name in CONTESTANTS:
        ratio = f"{speed[name] / speed['headwater']:.2f}"
        print(f"{name:<18}{speed[name]:>12,.1f}{statistics.median(seconds[name]):>10.3f}   {ratio}")


def _scores(arena: Arena, seeds: list[int], epochs: float) -> None:
    print(f"{'':<18}{'accuracy':>10}{'deviation':>11}{'mean s':>9}   of {len(seeds)} seeds, {epochs} epochs")
    for name in CONTESTANTS[:2]:
        found = [arena.score(name, seed, epochs) for seed in seeds]
        accuracies, seconds = zip(*found, strict=True)
        deviation = statistics.stdev(accuracies) if len(seeds) > 1 else 0.0
        print(f"{name:<18}{statistics.mean(accuracies):>10.4f}{deviation:>11.4f}{statistics.mean(seconds):>9.1f}")


if __name__ == "__main__":
    main()

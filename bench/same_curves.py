"""The claim of the README's picture: strategy and number of ranks do not change a run.

    python -m bench.same_curves [--ranks 1 2] [--steps 60] [--out docs/same_curves.png]

trains one tiny GPT on Python's standard library under every strategy and on every number of ranks (gloo, on the CPU),
each time by the same command. It draws all loss curves and how far each is from `ddp` on one rank, and prints the
largest differences of loss and gradient norm, which are relative to the values themselves.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from bench.rounds import ROOT, environment, machine
from pretrain.report.curves import COLOURS, STYLES
from pretrain.report.history import History, load

STRATEGIES = ["ddp", "zero0", "zero1", "zero2", "zero3", "fsdp2"]
TINY = ["model.width=64", "model.layers=2", "model.heads=2", "tokenizer.vocab_size=1024", "data.seq_len=128"]
TINY += ["train.batch_size=8", "train.micro_batch_size=2", "optim.lr=3e-3", "schedule.warmup_steps=5", "log.every=1"]
TINY += ["eval.max_slots=8", "eval.every=1000", "checkpoint.every=1000"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "same_curves.png")
    args = parser.parse_args()
    print(machine("torch", "deepspeed", "accelerate"))
    with tempfile.TemporaryDirectory() as folder:
        runs = [trained(strategy, ranks, args.steps, Path(folder)) for ranks in args.ranks for strategy in STRATEGIES]
    draw(runs, args.out)
    for metric in ("loss", "grad_norm"):
        run, distance = max(((run, max(distances(run, runs[0], metric))) for run in runs), key=lambda pair: pair[1])
        print(f"largest relative difference of {metric} from {runs[0].name}: {distance:.1e} ({run.name})")


def trained(strategy: str, ranks: int, steps: int, folder: Path) -> History:
    """Train under a strategy on some ranks and return what the run logged."""
    name = f"{strategy}-{ranks}"
    command = [sys.executable, "-m", "launch", "local", f"nproc={ranks}", "--", "pretrain", f"strategy={strategy}"]
    command += [f"run.name={name}", f"train.steps={steps}", *TINY]
    done = subprocess.run(command, cwd=folder, env=environment(threads=1), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}\nexit code {done.returncode}")
    run = load(folder / "runs" / name)
    print(f"{name:<8} loss after {steps} steps {run.train[-1]['loss']:.7f}", flush=True)
    run.name = f"{strategy}, {ranks} rank{'s' * (ranks > 1)}"
    return run


def distances(run: History, other: History, metric: str) -> list[float]:
    """Return the relative difference of a metric in each step."""
    pairs = zip(run.train, other.train, strict=True)
    return [abs(row[metric] - reference[metric]) / reference[metric] for row, reference in pairs]


def draw(runs: list[History], path: Path) -> None:
    """Draw the curves over each other, the first widest, and their distances from the first."""
    figure = Figure(figsize=(9, 3.2), dpi=100, layout="constrained", facecolor="white")
    curves, apart = figure.subplots(1, 2)
    steps = [row["step"] for row in runs[0].train]
    for number, run in enumerate(runs):
        look = {"color": COLOURS[number % len(COLOURS)], "linestyle": STYLES[number // len(COLOURS) % len(STYLES)]}
        width = 1 + 8 * (1 - number / len(runs))
        curves.plot(steps, [row["loss"] for row in run.train], **look, linewidth=width, label=run.name)
        if number:
            apart.semilogy(steps, [value + 1e-9 for value in distances(run, runs[0], "loss")], **look, linewidth=1)
    curves.set_title(f"Training loss of {len(runs)} runs", fontsize=10)
    apart.set_title(f"Relative difference from {runs[0].name}", fontsize=10)
    apart.set_ylim(1e-9, 1e-1)
    for panel in (curves, apart):
        panel.set_xlabel("optimizer step")
        panel.grid(alpha=0.3)
    figure.legend(*curves.get_legend_handles_labels(), loc="outside right", fontsize=7, handlelength=3)
    figure.savefig(path)
    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(64)
    small.save(path, optimize=True)  # a third of the size


if __name__ == "__main__":
    main()

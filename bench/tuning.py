"""Fine-tuning beside the Hugging Face Trainer with the same hyper-parameters: steps in turn, or scores of whole runs.

Holds what the benchmarks of the tasks share, command line and tables too; processes are in `rounds`, peers in `peers/`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.contestants import PEERS
from bench.rounds import ROOT, Runner, environment, interleaved, machine

WARM_UP = 3  # steps of each contestant that do not count
NEVER = 10**9  # steps


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is alike, beside AdamW's own defaults, a linear decay to 0, gradients clipped at 1, and fp32."""

    batch: int  # sequences in an optimizer step
    lr: float  # peak learning rate
    weight_decay: float  # of matrices, not of biases and norms
    epochs: float  # of whole runs
    max_tokens: int  # of a sequence
    attention_dropout: float  # probability; of all else it is 0.1


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is learnt, and by which commands."""

    unit: str  # what a step has `batch` of
    scores: list[str]  # metrics, by the names that both sides give them
    headwater: list[str]  # overrides
    peer: list[str]  # script in peers/, and options of its own
    batching: list[str]  # of the peer, its recipe's first

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

    def runner(self, name: str) -> Runner:
        """Return a contestant, ready to start; none gets to the end of so many epochs."""
        lines = self._metrics("speed") if name == "headwater" else self.work / name / "out.txt"
        command = self._command(name, run="speed", seed=1, epochs=100, measured=False)
        return Runner(command, self.work / name, lines, self.threads)

    def score(self, name: str, seed: int) -> tuple[dict[str, float], float]:
        """Return the scores after the last step of a whole run, and the seconds that it took from its start."""
        run = f"seed-{seed}"
        folder = self.work / f"{name}-{run}"
        folder.mkdir()
        command = self._command(name, run=run, seed=seed, epochs=self.recipe.epochs, measured=True)
        began = time.perf_counter()
        with (folder / "out.txt").open("w") as out, (folder / "errors.txt").open("w") as errors:
            done = subprocess.run(command, cwd=ROOT, env=environment(self.threads), stdout=out, stderr=errors)
        seconds = time.perf_counter() - began
        if done.returncode:
            raise SystemExit(f"{name}: exit code {done.returncode}\n{(folder / 'errors.txt').read_text()[-2000:]}")
        lines = self._metrics(run) if name == "headwater" else folder / "out.txt"
        measured = json.loads(lines.read_text().splitlines()[-1])
        return {score: measured[score] for score in self.task.scores}, seconds

    def _metrics(self, run: str) -> Path:
        return self.work / "runs" / run / "metrics.jsonl"

    def _command(self, name: str, *, run: str, seed: int, epochs: float, measured: bool) -> list[str]:
        recipe = self.recipe
        if name == "headwater":
            return [
                *(sys.executable, "-m", "finetune", *self.task.headwater, f"init_from={self.model}"),
                *(f"task.train={self.train}", f"task.validation={self.test}", f"task.max_tokens={recipe.max_tokens}"),
                *(f"train.batch_size={recipe.batch}", f"train.epochs={epochs}", f"seed={seed}"),
                *(f"optim.lr={recipe.lr}", f"optim.weight_decay={recipe.weight_decay}"),
                *(f"attention_dropout={recipe.attention_dropout}", "attention=sdpa"),
                *(f"run.root={self.work / 'runs'}", f"run.name={run}", "run.fresh=true"),
                *("log.every=1", f"eval.every={NEVER}"),  # the last step is measured whatever that says
            ]
        script, *options = self.task.peer
        return [
            *(sys.executable, str(PEERS / script), str(self.model), str(self.train)),
            *(str(self.test) if measured else "", "--batching", name.partition("-")[2], "--epochs", str(epochs)),
            *("--batch", str(recipe.batch), "--lr", str(recipe.lr), "--weight-decay", str(recipe.weight_decay)),
            *("--max-tokens", str(recipe.max_tokens), "--attention-dropout", str(recipe.attention_dropout)),
            *("--seed", str(seed), *options),
        ]


def parser(description: str | None, recipe: Recipe) -> argparse.ArgumentParser:
    """Return the command line of every task, with the task's recipe as defaults."""
    found = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("model", type=Path, help="directory of a released checkpoint")
    found.add_argument("train", type=Path, help="file to learn from")
    found.add_argument("test", type=Path, help="file to measure on")
    found.add_argument("--contestants", nargs="+", help="default: all for steps, the first two for scores")
    found.add_argument("--rounds", type=int, default=20, help="steps of each contestant that count")
    found.add_argument("--scores", action="store_true", help="whole runs and what they reach instead of steps")
    found.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    found.add_argument("--threads", type=int, default=2)
    for name, value in asdict(recipe).items():
        found.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help="default %(default)s")
    return found


def compete(task: Task, args: argparse.Namespace) -> None:
    """Do what the command line says, and print a table. Raises `SystemExit` for a contestant that fails."""
    names = args.contestants or (task.contestants[:2] if args.scores else task.contestants)
    if strangers := set(names) - set(task.contestants):
        raise SystemExit(f"{', '.join(strangers)}: must be of {', '.join(task.contestants)}")
    recipe = Recipe(**{name: getattr(args, name) for name in Recipe.__dataclass_fields__})
    with tempfile.TemporaryDirectory() as folder:
        arena = Arena(
            task=task,
            recipe=recipe,
            model=args.model.resolve(),
            train=args.train.resolve(),
            test=args.test.resolve(),
            work=Path(folder),
            threads=args.threads,
        )
        print(f"{', '.join(f'{name} {value}' for name, value in asdict(recipe).items())}; {args.threads} threads")
        print(machine("torch", "transformers"), flush=True)
        if args.scores:
            _scores(arena, names, args.seeds)
        else:
            _speed(arena, names, args.rounds)


def _speed(arena: Arena, names: list[str], rounds: int) -> None:
    seconds = interleaved({name: arena.runner(name) for name in names}, WARM_UP, rounds)
    # All sequences over all seconds: batches differ, so that a median step would favour short ones.
    speed = {name: arena.recipe.batch * rounds / sum(seconds[name]) for name in names}
    print(f"{'':<18}{f'{arena.task.unit}/s':>12}{'median s':>10}   {names[0]}'s time over this one's")
    for name in names:
        ratio = f"{speed[name] / speed[names[0]]:.2f}"
        print(f"{name:<18}{speed[name]:>12,.1f}{statistics.median(seconds[name]):>10.3f}   {ratio}")


def _scores(arena: Arena, names: list[str], seeds: list[int]) -> None:
    """Take the seeds in turn, so that an interrupted benchmark has compared something."""
    scores = arena.task.scores
    print(f"{'':<18}{'seed':>6}{''.join(f'{score:>13}' for score in scores)}{'s':>9}")
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for seed in seeds:
        for name in names:
            measured, seconds = arena.score(name, seed)
            found[name].append(measured)
            values = "".join(f"{100 * measured[score]:>13.2f}" for score in scores)
            print(f"{name:<18}{seed:>6}{values}{seconds:>9.0f}", flush=True)
    if len(seeds) > 1:
        for name, rows in found.items():
            columns = [[100 * row[score] for row in rows] for score in scores]
            print(f"{name:<18}{'mean':>6}" + "".join(f"{statistics.mean(column):>13.2f}" for column in columns))
            print(f"{'':<18}{'s.d.':>6}" + "".join(f"{statistics.stdev(column):>13.2f}" for column in columns))

"""Fine-tuning against the Hugging Face Trainer: steps in turn, scores of whole runs, or whether steps are the same.

Holds the command line and the tables that the benchmarks of all tasks share; what is compared is in `tuning`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from dataclasses import asdict
from pathlib import Path

from bench.rounds import interleaved, machine
from bench.same_steps import check_same_steps
from bench.tuning import Arena, Recipe, Task

WARM_UP = 3  # steps of each contestant that do not count


def parser(description: str | None, recipe: Recipe) -> argparse.ArgumentParser:
    """Return the command line of every task, with the task's recipe as defaults."""
    found = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("model", type=Path, help="directory of a released checkpoint")
    found.add_argument("train", type=Path, help="file to learn from")
    found.add_argument("test", type=Path, help="file to measure on")
    found.add_argument("--contestants", nargs="+", help="default: all for steps, the first two for scores")
    rounds = "steps of each contestant that count; of 50 length-grouped batches the longest come first (see README.md)"
    found.add_argument("--rounds", type=int, default=20, help=rounds)
    found.add_argument("--scores", action="store_true", help="whole runs and what they reach instead of steps")
    found.add_argument("--same", type=int, metavar="STEPS", help="whether so many steps without dropout are the same")
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
        if args.same:
            check_same_steps(arena, args.same)
        elif args.scores:
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
    scores, of = arena.task.scores, 1 if arena.task.percent else 100
    print(f"{'':<18}{'seed':>6}{''.join(f'{score:>13}' for score in scores)}{'s':>9}")
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for seed in seeds:
        for name in names:
            measured, seconds = arena.score(name, seed)
            found[name].append(measured)
            values = "".join(f"{of * measured[score]:>13.2f}" for score in scores)
            print(f"{name:<18}{seed:>6}{values}{seconds:>9.0f}", flush=True)
    if len(seeds) > 1:
        for name, rows in found.items():
            columns = [[of * row[score] for row in rows] for score in scores]
            print(f"{name:<18}{'mean':>6}" + "".join(f"{statistics.mean(column):>13.2f}" for column in columns))
            print(f"{'':<18}{'s.d.':>6}" + "".join(f"{statistics.stdev(column):>13.2f}" for column in columns))

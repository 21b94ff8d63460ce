"""Breaks one run again and again, in ways drawn from a seed, and compares its end with that of a run left alone.

    make soak RESTARTS=200 SEED=1                 every start draws a strategy and a number of ranks
    make soak RESTARTS=200 SEED=1 PLACE=zero3x2   all are in one place: then the runs must be equal bit for bit

Each start draws a fault. Some batches have no finite gradient on one rank, in both runs alike. Prints a line for each
start and a table at the end; exits with 1 if the runs differ.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from forks import Forked
from ranks import column, end, start, tiny, wait_until
from safetensors.torch import load_file
from torch import Tensor

PLACES = [(name, ranks) for name in ("ddp", "zero2", "zero3", "fsdp2") for ranks in (1, 2, 3)]
STEPS_A_START = 5  # of the run, on average
SMALL_DISK = 16 * 1024  # bytes that a file may have once the disk is full: fewer than a save takes
PLACE_NAMES = [f"{name}x{ranks}" for name, ranks in PLACES]
TOLERANCE = 2e-4  # relative, of losses and tensors; floats are added in the order of each start's ranks

# A module that the runs import: the gradient of some sequences, by what they hold, is not a number.
POISON = '''
from dataclasses import dataclass
import torch
from pretrain.objectives.causal_lm import CausalLM, CausalLMConfig
from pretrain.registry import register

class Poisoned(CausalLM):
    def forward(self, batch):
        loss = super().forward(batch)
        sums = torch.cat([batch.tokens.new_zeros(1), batch.tokens.cumsum(0)])[batch.offsets.long()].diff()
        return loss._replace(total=loss.total * torch.where((sums % 997 == 0).any(), torch.nan, 1.0))

@register("objective", "poisoned")
@dataclass(kw_only=True)
class PoisonedConfig(CausalLMConfig):
    """A causal model whose gradient is not a number where the ids of a sequence add up to a multiple of 997."""

    def build(self, model):
        return Poisoned(self, model)
'''


class Soak:
    """A run that is started until it has its steps."""

    def __init__(self, place: Path, steps: int, draw: random.Random, places: list[tuple[str, int]]) -> None:
        self.place, self.steps, self.draw, self.places = place, steps, draw, places
        self.directory = place / "runs" / "soaked"

    def settings(self, name: str) -> list[str]:
        long = [f"train.steps={self.steps}", "train.batch_size=12", "train.micro_batch_size=2", "eval.every=0"]
        every = 2 if name == "soaked" else self.steps
        saves = [f"checkpoint.every={every}", "checkpoint.keep=4", "checkpoint.max_failures=2"]
        # With Adam's usual eps, rounding decides where parameters without a gradient go, such as biases of keys.
        rate = ["optim.lr=1e-3", "optim.eps=1e-3", "schedule=constant", "data.seq_len=24"]
        return tiny(name, *long, *saves, *rate, "plugins=[poison]", "objective=poisoned")

    def start(self, strategy: str, ranks: int, name: str = "soaked") -> list[Forked]:
        return start(*self.settings(name), f"strategy={strategy}", ranks=ranks, cwd=self.place)

    def to_its_end(self, name: str) -> None:
        ranks = self.start(*self.places[0], name)
        assert set(end(ranks)) == {0}, ranks[0].stderr[-3000:]

    def logged(self) -> int:
        """Return the newest step that the run has logged."""
        metrics = self.directory / "metrics.jsonl"
        return metrics.read_bytes().count(b'"split": "train"') if metrics.exists() else 0

    def saving(self) -> bool:
        return any((self.directory / "checkpoints").glob(".tmp-*"))

    # The faults: each takes ranks that train, and returns the exit codes that are right for those left alone.

    def kill_one(self, ranks: list[Forked]) -> set[int]:
        self.draw.choice(ranks).kill()
        return {-signal.SIGKILL, 7}

    def kill_all(self, ranks: list[Forked]) -> set[int]:
        for rank in ranks:
            rank.kill()
        return {-signal.SIGKILL}

    def kill_amid_a_save(self, ranks: list[Forked]) -> set[int]:
        wait_until(self.saving, *ranks)
        return self.kill_one(ranks)

    def ask_one_to_stop(self, ranks: list[Forked]) -> set[int]:
        self.draw.choice(ranks).send_signal(self.draw.choice([signal.SIGTERM, signal.SIGUSR1]))
        return {85}

    def stop_one(self, ranks: list[Forked]) -> set[int]:
        """Freeze a rank for a while, then kill it: the others wait for it, or have given it up."""
        silent = self.draw.choice(ranks)
        silent.send_signal(signal.SIGSTOP)
        time.sleep(self.draw.random())
        silent.kill()
        return {-signal.SIGKILL, 6, 7}

    def fill_the_disk(self, ranks: list[Forked]) -> set[int]:
        resource.prlimit(self.draw.choice(ranks).pid, resource.RLIMIT_FSIZE, (SMALL_DISK, SMALL_DISK))
        return {8, 7}  # those that miss the one which had to end

    def tear(self, ranks: list[Forked]) -> set[int]:
        """Kill all, and damage a file of the newest step."""
        codes = self.kill_all(ranks)
        end(ranks)
        steps = sorted((self.directory / "checkpoints").glob("step-*"))
        if len(steps) > 1:
            file = self.draw.choice(sorted(steps[-1].iterdir()))
            harm = self.draw.choice(["cut", "flip", "delete"])
            content = bytearray(file.read_bytes())
            content[self.draw.randrange(len(content))] ^= 1 << self.draw.randrange(8)
            file.unlink() if harm == "delete" else file.write_bytes(content[:-1] if harm == "cut" else content)
        return codes

    @property
    def faults(self) -> list[Callable[[list[Forked]], set[int]]]:
        return [
            *(self.kill_one, self.kill_all, self.kill_amid_a_save),
            *(self.ask_one_to_stop, self.stop_one, self.fill_the_disk, self.tear),
        ]

    def broken_at(self, step: int) -> tuple[str, str, list[int]]:
        """Start the run, break it once it has logged a step, and return where it ran, how it was broken, its codes."""
        strategy, size = self.draw.choice(self.places)
        fault = self.draw.choice(self.faults)
        ranks = self.start(strategy, size)
        try:
            wait_until(lambda: self.logged() >= step, *ranks)
            right = fault(ranks)
        except AssertionError:
            print("\n".join(rank.stderr[-3000:] for rank in ranks), file=sys.stderr)
            raise
        codes = end(ranks)
        assert set(codes) <= right, f"{fault.__name__} on {strategy}: {codes}\n{ranks[0].stderr[-3000:]}"
        return f"{strategy} x {size}", fault.__name__, codes


def largest_difference(first: Path, second: Path, steps: int) -> float:
    """Return the largest relative difference of losses; infinite where a run lacks a step."""
    one, other = column(first, "loss"), column(second, "loss")
    if not one.keys() == other.keys() == set(range(1, steps + 1)):
        return float("inf")
    return max(abs(one[step] - other[step]) / one[step] for step in one)


def largest_distance(first: Path, second: Path) -> float:
    """Return the largest distance of weights, relative to the norm of their tensor; both ended in one place."""
    one, other = (weights(directory) for directory in (first, second))
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).norm() / one[name].norm().clamp_min(1e-3)) for name in one)


def weights(directory: Path) -> dict[str, Tensor]:
    """Return the fragments of the weights in the newest step."""
    files = max((directory / "checkpoints").glob("step-*")).glob("*.safetensors")
    fragments = {name: tensor for file in files for name, tensor in load_file(file).items()}
    return {name: tensor for name, tensor in fragments.items() if name.startswith("weight/")}


def soak(place: Path, restarts: int, seed: int, places: list[tuple[str, int]]) -> int:
    """Run both runs in a folder, which holds text.txt; return the exit code. In one place they must be equal."""
    (place / "poison.py").write_text(POISON)
    run = Soak(place, STEPS_A_START * (restarts + 1), random.Random(seed), places)
    run.to_its_end("clean")
    kinds: Counter[str] = Counter()
    where_it_ran: Counter[str] = Counter()
    for number in range(1, restarts + 1):
        began = time.monotonic()
        step = max(STEPS_A_START * number - run.draw.randrange(STEPS_A_START), run.logged() + 1)
        where, kind, codes = run.broken_at(min(step, run.steps - 1))
        kinds[kind] += 1
        where_it_ran[where] += 1
        took = time.monotonic() - began
        print(f"{number:4} {where:10} {kind:17} at {step:5} codes {codes} {took:5.1f} s", flush=True)
    run.to_its_end("soaked")
    whole = place / "runs" / "clean"
    difference, distance = largest_difference(whole, run.directory, run.steps), largest_distance(whole, run.directory)
    skipped = sum(column(run.directory, "skipped").values())
    print(f"\n{restarts} restarts, seed {seed}, {run.steps} steps, {skipped} of them skipped for a NaN")
    print("\n".join(f"{kind:20} {count}" for kind, count in sorted([*kinds.items(), *where_it_ran.items()])))
    allowed = TOLERANCE if len(places) > 1 else 0.0
    print(f"largest relative difference: losses {difference:.1e}, tensors {distance:.1e} (allowed: {allowed:.0e})")
    same = skipped == sum(column(whole, "skipped").values()) > 0
    return 0 if max(difference, distance) <= allowed and same else 1


def main() -> int:
    """Read the command line and soak in a folder that is deleted afterwards."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--restarts", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--place", choices=PLACE_NAMES, help="of all starts; without it each draws its own")
    options = parser.parse_args()
    places = [PLACES[PLACE_NAMES.index(options.place)]] if options.place else PLACES
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        draw = random.Random(5)
        words = [f"word{number}" for number in range(60)]
        text = "\n\n".join(" ".join(draw.choices(words, k=draw.randint(1, 90))) for _ in range(400))
        (place / "text.txt").write_text(text)
        return soak(place, options.restarts, options.seed, places)


if __name__ == "__main__":
    os.environ.pop("PYTHONHASHSEED", None)
    sys.exit(main())

"""Runs whose ranks die and are started again, by our launcher and by torchrun: they equal the uninterrupted run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from forks import FAST
from ranks import column, command, run, tiny

DYING = """
import os
from dataclasses import dataclass
from pathlib import Path
from pretrain.registry import register
from pretrain.train.own_hooks import Hook, HookConfig

@register("hook", "dying")
@dataclass(kw_only=True)
class DyingConfig(HookConfig):
    at: int = 8  # the step at which the last of two ranks is killed
    times: int = 1
    def build(self):
        return Dying(self)

class Dying(Hook):
    def __init__(self, cfg):
        self.cfg = cfg
    def begin(self, run):
        self.run = run
        self.starts = run.directory / "starts"
        if run.world.rank == 1:
            self.starts.open("a").write(f"{run.state.step}\\n")
    def logged(self, record):
        run = self.run
        if run.world.rank == 1 and record["step"] == self.cfg.at:
            if self.starts.read_text().count("\\n") <= self.cfg.times:
                os.kill(os.getpid(), 9)
"""
pytestmark = pytest.mark.slow


def course(name: str, *more: str) -> list[str]:
    """Return the overrides of a run of 12 steps, saved every 3."""
    own = ["train.steps=12", "train.micro_batch_size=4", "eval.every=6", "checkpoint.every=3"]
    return tiny(name, *own, *more)


@pytest.fixture(scope="module")
def whole(place) -> dict[int, object]:
    """The loss at each step of a run on two ranks that nothing interrupts."""
    (place / "dying.py").write_text(DYING)
    run(*course("in-one-go"), ranks=2, cwd=place)
    return column(place / "runs" / "in-one-go", "loss")


def dying(name: str, *more: str) -> list[str]:
    return course(name, "plugins=[dying]", "hooks.dying.at=8", *more)


def ended(line: list[str], cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(line, cwd=cwd, env=os.environ | FAST, capture_output=True, text=True, timeout=280)
    assert done.returncode == code, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done


def launch(*settings: str, words: list[str], cwd: Path, code: int = 0) -> str:
    line = [sys.executable, "-m", "launch", "local", "nproc=2", *settings, "--", "pretrain", *words]
    return ended(line, cwd, code).stderr


def test_a_rank_that_is_killed_once_is_started_again(place, whole):
    told = launch("max_restarts=1", words=dying("again", "run.fresh=true"), cwd=place)
    assert "restart 1 of 1 without a new checkpoint: 2 ranks, from step-00000006, in 1 s" in told
    assert column(place / "runs" / "again", "loss") == whole
    assert (place / "runs" / "again" / "starts").read_text().split() == ["0", "6"]


def test_a_run_goes_on_with_the_ranks_that_are_left(place, whole):
    words = dying("left", "hooks.dying.times=9")
    told = launch("max_restarts=2", "min_nproc=1", words=words, cwd=place)
    assert "rank 1 of 2 cannot start again\nit goes on with 1 of 2 ranks" in told
    assert "changed since the run's last start: ranks: 2 -> 1" in told
    assert column(place / "runs" / "left", "loss") == pytest.approx(whole, abs=1e-5)
    assert json.loads((place / "runs" / "left" / "run.json").read_text())["ranks"] == 1


def test_torchrun_restarts_ranks_in_one_store(place, whole):
    [python, *torchrun] = command(*dying("torchrun-again"), ranks=2)
    at = torchrun.index("--standalone")
    ended([python, *torchrun[:at], "--max-restarts=1", *torchrun[at:]], place)
    assert column(place / "runs" / "torchrun-again", "loss") == whole

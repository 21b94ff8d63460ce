"""Hooks of one's own in whole runs: which rank sees what, what a run notes of it, what becomes of one that fails."""

import json
import os

from forks import Forked
from ranks import column, end, environments, tiny

NOTING = """
import runpy
from dataclasses import dataclass
from pretrain.registry import register
from pretrain.train.own_hooks import Hook, HookConfig

@register("hook", "noting")
@dataclass(kw_only=True)
class NotingConfig(HookConfig):
    stop_at: int = 1000
    fail_at: int = 1000
    def build(self):
        return Noting(self)

class Noting(Hook):
    def __init__(self, cfg):
        self.cfg = cfg
    def note(self, *words):
        with (self.run.directory / f"noted-{self.run.world.rank}").open("a") as file:
            print(*words, file=file)
    def begin(self, run):
        self.run = run
        self.note("begin", run.state.step, run.total_steps, run.module.training)
    def logged(self, record):
        if record["step"] == self.cfg.fail_at:
            raise LookupError("no such thermometer")
        if record["step"] == self.cfg.stop_at and self.run.world.rank == 1:
            self.run.stop("it is warm enough")
        [together] = self.run.world.sum_ints(self.run.world.rank + 1)
        self.note(record["split"], record["step"], f"{record['loss']:.4f}")
        return {"ranks": together}
    def evaluated(self, record):
        self.note(record["split"], record["step"], f"{record['loss']:.4f}")
    def saved(self, step, path, best):
        self.note("saved", step, path.name, path.is_dir(), best)
    def end(self, exit_code):
        self.note("end", exit_code)

runpy.run_module("pretrain", run_name="__main__")
"""


def run(*overrides, ranks, codes, cwd):
    own = environments(ranks) if ranks > 1 else [{}]
    started = [Forked("-c", NOTING, *overrides, cwd=cwd, env=os.environ | more) for more in own]
    assert end(started) == codes, started[0].stderr
    return started[0].stderr


def test_all_ranks_see_the_same_and_one_may_end_the_run(place):
    more = ["train.steps=12", "eval.every=3", "checkpoint.every=4", "eval.at_start=false", "hooks.noting.stop_at=5"]
    said = run(*tiny("hooked", "train.micro_batch_size=4", *more), ranks=2, codes=[0, 0], cwd=place)
    assert "the run ends early, as hooks ask: it is warm enough\n" in said
    directory = place / "runs" / "hooked"
    noted = [(directory / f"noted-{rank}").read_text() for rank in (0, 1)]
    assert noted[0] == noted[1]
    seen = [line.split() for line in noted[0].splitlines()]
    assert seen[0] == ["begin", "0", "12", "True"] and seen[-1] == ["end", "0"]
    losses = {(split, int(step)): float(loss) for split, step, loss in (words for words in seen if len(words) == 3)}
    for split, steps in {"train": range(1, 6), "validation": [3]}.items():
        expected = column(directory, "loss", split)
        assert {step: round(loss, 4) for step, loss in expected.items()} == {
            step: losses[split, step] for step in steps
        }
    assert [words[:4] for words in seen if words[0] == "saved"] == [
        ["saved", "4", "step-00000004", "True"],
        ["saved", "5", "step-00000005", "True"],
    ]
    assert set(column(directory, "noting/ranks").values()) == {3}
    assert json.loads((directory / "run.json").read_text())["exit"] == 0


def test_what_a_hook_raises_ends_the_run_by_its_name_and_it_resumes(place):
    more = ["train.steps=4", "checkpoint.every=2", "eval.every=0"]
    said = run(*tiny("failing", *more, "hooks.noting.fail_at=3"), ranks=1, codes=[1], cwd=place)
    assert "LookupError: no such thermometer\nraised by the hook 'noting' of this run, in logged()" in said
    assert (place / "runs" / "failing" / "noted-0").read_text().endswith("end 1\n")
    run(*tiny("failing", *more, "hooks={noting:{}}"), ranks=1, codes=[0], cwd=place)
    assert (place / "runs" / "failing" / "noted-0").read_text().count("begin 2 4") == 1

"""Branches of runs: how the step that a run branches off is named, and what a branch may change.

Holds words and comparisons; what happens on disk at the start of a branch is in `begin`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from pretrain.checkpoint.commit import step_name, step_names
from pretrain.checkpoint.load import load_state
from pretrain.errors import CheckpointError, ConfigError, DataError, HeadwaterError, as_written, check
from pretrain.settings.paths import expanded, is_there
from pretrain.train.run_dir.base import CHECKPOINTS, RunConfig
from pretrain.train.run_dir.changes import choice_name

KEY = "branch_from"
RULE = "names a run and a saved step of it, as in runs/main@4000; without @STEP the newest"
FIRST_STEP = "data.first_step"  # fingerprint of a run with other data than the steps before: where these begin

BranchData = StrEnum("BranchData", ["continue", "fresh"])  # by call: one of them is a word of Python's


@dataclass(kw_only=True)
class BranchConfig:
    """How a run goes on that branches off another one."""

    data: BranchData = BranchData["continue"]  # go on in the other run's data, or begin with fresh ones: other texts


class Recorded(TypedDict):
    """What run.json and every state.json of a branch say of it."""

    run: str  # that it branched off, as it was named
    step: int
    data: str  # "continue" or "fresh"


class Origin(NamedTuple):
    """What a run branches off."""

    run: Path  # its directory
    step: int | None  # None: the newest
    name: str  # as it was typed, without the step

    @classmethod
    def of(cls, typed: str, root: str) -> Origin:
        """Return what RUN or RUN@STEP names: a run directory, or a run in `root`. Raises `ConfigError` for others."""
        head, at, tail = typed.rpartition("@")
        name, step = (head, int(tail)) if at and tail.isascii() and tail.isdigit() else (typed, None)
        check(bool(name), KEY, typed, RULE)
        path = Path(expanded(name, KEY))
        if not is_there(path):
            path = Path(expanded(root, "run.root")) / name
        if not is_there(path):
            raise ConfigError(f"{KEY}={typed}: no such run, neither {name} nor {path}; it {RULE}")
        return cls(path, step, name)

    def resolved(self) -> Origin:
        """Return it with the number of its step, which is there. Raises `ConfigError` for one that is not."""
        names = step_names(self.run / CHECKPOINTS)
        if not names:
            raise ConfigError(
                f"{KEY}={self.typed}: no step is saved in {self.run}; train it first, or name another run"
            )
        if self.step is None:
            return self._replace(step=int(names[-1].removeprefix("step-")))
        if step_name(self.step) not in names:
            there = ", ".join(name.removeprefix("step-").lstrip("0") or "0" for name in names[-8:])
            rule = f"step {self.step} is not saved there any more, or not yet; there are {there}"
            fix = "the run keeps its multiples of checkpoint.keep_every"
            raise ConfigError(f"{KEY}={self.typed}: {rule} ({fix})")
        return self

    @property
    def typed(self) -> str:
        """The origin as a user types it."""
        return self.name if self.step is None else f"{self.name}@{self.step}"


def check_one_source(branch_from: str | None, init_from: str | None) -> None:
    """Raise `ConfigError` for a run that would begin from two others."""
    rule = "goes on with weights, moments and step, init_from with weights alone; leave out one of the two"
    check(not (branch_from and init_from), KEY, branch_from, rule)


def check_branch(branch_from: str | None, branch: BranchConfig, init_from: str | None) -> None:
    """Raise `ConfigError` for settings of a branch that contradict others, or that nothing would use."""
    check_one_source(branch_from, init_from)
    rule = f"nothing branches off; name {KEY}=RUN@STEP, or leave it out"
    check(bool(branch_from) or branch.data == BranchData["continue"], "branch.data", branch.data.name, rule)


def newest_state(run: Path) -> dict[str, Any]:
    """Return the state of the newest step of a run whose state can be read; nothing without one."""
    for name in reversed(step_names(run / CHECKPOINTS)):
        try:
            return load_state(run / CHECKPOINTS / name)
        except CheckpointError:  # `newest_step` says so when the run resumes
            continue
    return {}


def data_start(run: Path) -> int:
    """Return the data step at which the data of a run that has steps begin with slot 0."""
    return newest_state(run).get("resume", {}).get(FIRST_STEP, 0)


def first_data_step(cfg: RunConfig, origin: Origin | None, branch: BranchConfig) -> int:
    """Return the data step at which a run's data begin with slot 0; above 0 in a branch with fresh data, or of one.

    A run that has steps knows it from these. Reads small files alone.
    """
    if newest_state(cfg.directory):
        return data_start(cfg.directory)
    if origin is None or origin.step is None:
        return 0
    if branch.data == BranchData["fresh"]:
        return origin.step
    state = load_state(origin.run / CHECKPOINTS / step_name(origin.step))
    return state.get("resume", {}).get(FIRST_STEP, 0)


def check_differences(origin: Origin, theirs: Mapping[str, Any], ours: Mapping[str, Any], branch: BranchConfig) -> None:
    """Raise by its kind for the first thing that a branch must have in common with its origin, and has not.

    `theirs` and `ours` are the fingerprints of the two. Network, tokenizer and the kind of the optimizer always agree,
    order and content of the data unless they are fresh. What is in no fingerprint may differ: schedule, rates, length,
    micro-batches, strategy.
    """
    for key in {**ours, **theirs}:
        was, now = (choice_name(key, side.get(key)) for side in (theirs, ours))
        if was == now:
            continue
        kind, rule = _rule(key, origin, branch)
        if kind:
            raise kind(f"{KEY}={origin.typed}: {key} is {as_written(now)} here and {as_written(was)} there, {rule}")


def _rule(key: str, origin: Origin, branch: BranchConfig) -> tuple[type[HeadwaterError] | None, str]:
    """Return the kind of the refusal of a difference and what is said of it; no kind: it may be."""
    if key.startswith(("model.", "optim")):
        rule = (
            "and a branch goes on with weights and moments; leave it out, or begin with the weights alone (init_from)"
        )
        return CheckpointError, rule
    if key == "tokenizer":
        rule = "so that ids would stand for other tokens; set"
        return DataError, f"{rule} tokenizer=file tokenizer.path={origin.run / 'tokenizer.json'}"
    if branch.data == BranchData["fresh"]:
        return None, ""
    return (
        DataError,
        "and a branch goes on in the same data; leave it out, or set branch.data=fresh to change data here",
    )

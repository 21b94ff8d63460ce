"""Resuming a run: what its newest step must agree with, and what of it is taken up.

Holds the comparison and the reading; the order of a run's start is in `session`, steps on disk are in `checkpoint`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from pretrain.checkpoint.commit import step_names
from pretrain.checkpoint.load import Committed, Shapes, StepState, load_state, newest_step, restore
from pretrain.checkpoint.save import Checkpoints
from pretrain.data.stream import CORPUS
from pretrain.errors import CheckpointError, ConfigError, DataError, check
from pretrain.optim.schedule import LearningRate
from pretrain.registry import plain
from pretrain.strategy.base import Strategy
from pretrain.tracking.base import Mark
from pretrain.train.detours.base import DETOURS, taken_up
from pretrain.train.detours.divergence import WatchState
from pretrain.train.run_dir.base import CHECKPOINTS, RunConfig
from pretrain.train.run_dir.changes import choice_name
from pretrain.train.run_dir.record import choice_of, read_nested_config

Fingerprints = dict[str, Any]
"""What a resumed run must find unchanged, and all ranks alike: a setting or a part of the data -> its plain value."""


class _Resumable(StepState):
    tokens: int


class SavedRun(_Resumable, total=False):
    """What a checkpoint holds beside its tensors, as `RunHooks.progress` gives it."""

    metrics: Mark | None  # null in those of older versions
    best_evaluation: tuple[int, float] | None  # of all so far, whether its step was saved or not
    stalled: int  # evaluations since then
    divergence: WatchState  # of pretraining
    unlogged: tuple[float | None, float | None, float | None, int]  # `metrics.Unlogged`
    skipped: list[tuple[int, int, float | None]]  # `skips.Skips`: the newest in a row, steps, data steps and norms


log = logging.getLogger(__name__)


def resumes(cfg: RunConfig) -> bool:
    """Return whether a run has a checkpoint to resume from, so that it needs no source of first weights any more."""
    return bool(step_names(cfg.directory / CHECKPOINTS))


def resume(
    checkpoints: Checkpoints,
    strategy: Strategy,
    shapes: Shapes,
    fingerprints: Fingerprints,
    *,
    num_steps: int,
    unsaid: Fingerprints,
    committed: Committed | None = None,
    from_elsewhere: bool = False,
    accept: Callable[[str], None] | None = None,
) -> dict[str, Any] | None:
    """Fill the strategy from the newest checkpoint and return what was saved beside it; None if there is none.

    A collective. `shapes` are those of the whole module, `num_steps` those of the whole run; `committed` are the steps
    that should be there, saved by another host if `from_elsewhere`, see `newest_step`; `unsaid` are values of what was
    no setting when an older version saved.
    Raises `CheckpointError` or `DataError` for a checkpoint of another network, or of other data, by the name of what
    differs; a corpus that changed goes to `accept`, if there is one.
    """
    newest = newest_step(checkpoints.directory, checkpoints.world, committed, from_elsewhere=from_elsewhere)
    if newest is None:
        return None
    saved = load_state(newest, SavedRun)
    theirs = same_run(newest, saved, fingerprints, unsaid, accept)
    rule = f"{newest} is past it; raise it to train longer, or choose another run.name"
    check(saved["step"] <= num_steps, "train.steps", num_steps, rule)
    restore(newest, shapes, strategy)
    if saved["step"] < num_steps:
        log.info("resuming from %s", newest)
    else:
        log.info("%s is the last step of the run: nothing is left to train", newest)
    return saved | {"resume": theirs}


def same_run(
    step: Path,
    saved: dict[str, Any],
    fingerprints: Fingerprints,
    unsaid: Fingerprints,
    accept: Callable[[str], None] | None = None,
) -> Fingerprints:
    """Return the fingerprints of a saved step, with what older versions did not say and detours taken since.

    Raises `CheckpointError` or `DataError` if they are those of another run; see `resume`.
    """
    theirs = {key: unsaid[key] for key in fingerprints if key in unsaid} | saved.get("resume", {})
    if DETOURS in fingerprints:
        theirs[DETOURS] = taken_up(saved, fingerprints[DETOURS])
    for key in fingerprints | theirs:
        before, now = theirs.get(key), fingerprints.get(key)
        if before == now or (key == "tokenizer" and key not in theirs):  # older runs of fine-tuning did not note it
            continue
        of_corpus = key.startswith(CORPUS)
        if of_corpus and before and now and accept:
            accept(f"data.accept_changed=true: from step {saved['step']} on {key} is {now}, it was {before}")
            continue
        kind = CheckpointError if key.startswith(("model.", "optim")) else DataError
        rule = "which would make it another run; restore it, or choose another run.name"
        waiver = ", or go on with data.accept_changed=true" if of_corpus else ""
        was, is_now = choice_name(key, before), choice_name(key, now)
        raise kind(f"{step}: {key} was {was} and is now {is_now}, {rule}{waiver}")
    return theirs


def change_of_rate(run: Path, now: LearningRate, step: int) -> str | None:
    """Say what becomes of the learning rate after `step` if that is not what the run's last start had planned.

    Batches grow as they did then: `resume` refuses others.
    """
    try:
        config, schedule = read_nested_config(run), choice_of(run, "schedule")
        before = LearningRate(config["optim"]["lr"], schedule, config["train"].get("steps", now.total_steps), now.batch)
        return now.change(before, step)
    except (ConfigError, LookupError, TypeError) as error:
        return f"whether the learning rate goes on as planned is not known: {error}"


def network_fingerprints(network: Any, optim: Any) -> Fingerprints:
    """Return what a resumed run must find unchanged of its network and of its optimizer's moments.

    Not the name of its family, which says what an export is and changes no weight.
    """
    fixed = {key: value for key, value in plain(network).items() if "dropout" not in key and key != "family"}
    settings = {f"model.{key}": value for key, value in fixed.items()}
    return {**settings, "optim": type(optim).__name__}


def network_defaults(network: Any) -> Fingerprints:
    """Return the values that settings of a network have in steps of versions that did not have them: the defaults."""
    optional = [key for key in fields(network) if key.default is not MISSING or key.default_factory is not MISSING]
    needed = {key.name: getattr(network, key.name) for key in fields(network) if key not in optional}
    defaults = type(network)(**needed)
    return {f"model.{key.name}": plain(getattr(defaults, key.name)) for key in optional}

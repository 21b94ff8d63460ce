"""Going back: which step a run returns to, what becomes of the steps after it, and training again behind a detour.

Holds the order on disk, in which a kill at any moment leaves a run that resumes: first the later steps are put aside,
the newest first, then the detour is recorded. Killed in between, the run goes on from an older step and without the
detour.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from pretrain.checkpoint.commit import step_name, step_names
from pretrain.distributed.world import World
from pretrain.errors import CheckpointError, ConfigError, Diverged, NumericalError, ResourceError
from pretrain.files import fsync_path
from pretrain.strategy.base import Strategy
from pretrain.tracking.jsonl import METRICS_FILE, last_record
from pretrain.train.detours.base import Detour, add_detour, data_step, fault, read_detours
from pretrain.train.detours.divergence import DivergenceConfig
from pretrain.train.run_dir.base import CHECKPOINTS, TRACE_FILE, RunDirectory

PUT_ASIDE = "put-aside-"  # and a number: a folder in `checkpoints` of what a rewind has left behind


def detoured(cfg: DivergenceConfig, directory: RunDirectory | None, world: World, attempt: Callable[[], None]) -> bool:
    """Train; return whether the run diverged and is to be built and trained again, behind a new detour. A collective.

    Without `divergence.action=detour`, `Diverged` passes through; after `max_detours`, and where no step is left to go
    back to, all ranks raise `NumericalError`.
    """
    try:
        attempt()
        return False
    except Diverged as error:
        if not cfg.detours:
            raise
        first, step, reason = error.first, error.step, str(error)
    # By now the error is gone, and with it the frames that hold the model, whose place another one will take.
    gc.collect()
    answer = _answer(cfg, directory, first, step, reason) if directory else None
    [answer, *_] = world.gather(answer)
    if answer:
        problem, of_disk = answer
        raise ResourceError(problem) if of_disk else NumericalError(problem)
    return True


@contextmanager
def let_go(strategy: Strategy) -> Iterator[None]:
    """Close a strategy whose run diverges in the block."""
    try:
        yield
    except Diverged:
        strategy.close()
        raise


def shared_detours(
    directory: RunDirectory | None, world: World, inherited_from: Path | None = None
) -> tuple[Detour, ...]:
    """Return the detours of a run on all ranks, as rank 0 reads them, which has its directory. A collective.

    A run that is about to branch off another has that one's. All ranks raise the `CheckpointError` of `read_detours`.
    """
    answer: list[dict[str, Any]] | str = []
    if directory:
        try:
            answer = [vars(each) for each in read_detours(inherited_from or directory.path)]
        except CheckpointError as error:
            answer = str(error)
    [answer, *_] = world.gather(answer)
    if isinstance(answer, str):
        raise CheckpointError(answer)
    return tuple(Detour(**each) for each in answer)


def saved_steps(run: Path) -> list[int]:
    """Return the steps that a run has on disk, oldest first."""
    return [int(name.removeprefix("step-")) for name in step_names(run / CHECKPOINTS)]


def last_step(run: Path) -> int:
    """Return the last step that a run has logged or saved. Raises `ConfigError` for a damaged metrics.jsonl."""
    path = run / METRICS_FILE
    try:
        record = last_record(path.read_bytes(), "train") if path.exists() else None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not readable ({error}); mend or restore it") from None
    return max([*saved_steps(run), record["step"] if record else 0])


def step_to_go_back_to(saved: Sequence[int], wanted: int, latest: int) -> int | None:
    """Return the newest saved step up to `wanted`, else the oldest up to `latest`, else None; 0 if none was saved.

    At step 0 a run has its first weights again, which costs all of it: only where nothing was saved, or it is wanted.
    """
    if early := [step for step in saved if step <= min(wanted, latest)]:
        return early[-1]
    if wanted <= 0 or not saved:
        return 0
    return saved[0] if saved[0] <= latest else None


def go_back(directory: RunDirectory, detour: Detour) -> None:
    """Put aside what a run saved after the step of a detour, record the detour, and note both.

    Nothing is deleted: later steps are moved into a folder of their own, with a copy of the metrics. Raises
    `ConfigError` for a detour that would change data before its step, `OSError` and `ResourceError` as the disk does.
    """
    before = read_detours(directory.path)
    if wrong := fault(before, detour):
        raise ConfigError(f"{directory.path}: {wrong}")
    steps = directory.path / CHECKPOINTS
    later = [name for name in step_names(steps) if name > step_name(detour.step)]
    folder = next(path for number in count(1) if not (path := steps / f"{PUT_ASIDE}{number}").exists())
    folder.mkdir(parents=True)
    for file in (METRICS_FILE, TRACE_FILE):
        if (directory.path / file).exists():
            shutil.copy(directory.path / file, folder / file)
    for name in reversed(later):
        (steps / name).rename(folder / name)
    fsync_path(folder)
    fsync_path(steps)
    directory.keep_committed(step_names(steps))
    add_detour(directory.path, detour)
    directory.note(
        f"detour {len(before) + 1}: {detour.reason}; back to step {detour.step}, and around data steps {detour.first} "
        f"to {detour.end - 1}, which no later step takes; {len(later)} later steps and a copy of {METRICS_FILE} lie in "
        f"{folder}, which nothing needs any more"
    )


def _answer(cfg: DivergenceConfig, directory: RunDirectory, first: int, step: int, reason: str) -> list[object] | None:
    """Go back; return None, or what is wrong and whether it is the disk."""
    try:
        _go_back(cfg, directory, first, step, reason)
    except (NumericalError, CheckpointError) as error:
        return [str(error), False]
    except (OSError, ResourceError) as error:
        return [f"{directory.path}: no detour can be recorded ({error}); free space there and resume", True]
    return None


def _go_back(cfg: DivergenceConfig, directory: RunDirectory, first: int, step: int, reason: str) -> None:
    """Take the detour around what the optimizer steps from `first` on, up to `step`, have trained on."""
    before = read_detours(directory.path)
    taken = [each for each in before if each.automatic]
    if len(taken) >= cfg.max_detours:
        ranges = ", ".join(f"{each.first}:{each.end} from step {each.step}" for each in taken)
        rule = "not the data alone are to blame; lower optim.lr, or raise it"
        raise NumericalError(f"{reason}; divergence.max_detours={cfg.max_detours} are taken ({ranges}): {rule}")
    target = step_to_go_back_to(saved_steps(directory.path), step - cfg.rewind, first)
    if target is None:
        rule = "keep more steps (checkpoint.keep, checkpoint.every), and go back by hand: python -m pretrain.detour"
        raise NumericalError(f"{reason}; all saved steps are later than step {first}, where it began; {rule}")
    begins, ends = data_step(before, first), data_step(before, step - 1) + 1
    go_back(directory, Detour(step=target, first=begins, end=ends, reason=reason, automatic=True))

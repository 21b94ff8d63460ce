"""Saving a run: when fragments are copied, written and committed, and which steps stay.

Holds the save protocol over all ranks. The bytes on disk are `fragments`, the moves of directories `commit`, and
reading a step back is `load`.

A committed step is a directory with one fragment file a rank, `state.json` and `manifest.json`:

    checkpoints/step-00001000/fragments-00000-of-00002.safetensors ...

Commit protocol: all ranks write into `.tmp-step-...`, hash the bytes as they go and fsync; then rank 0 writes the
manifest last, fsyncs the directory, renames it and fsyncs the parent. A step counts only when its manifest and the
files that it lists verify, so a kill at any moment leaves the step before it.
"""

from __future__ import annotations

import json
import logging
import operator
import secrets
import shutil
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pretrain.checkpoint.base import Checkpointable, Fragment
from pretrain.checkpoint.commit import TEMPORARY, commit, prune, step_name, sweep
from pretrain.checkpoint.fragments import Index, write_fragments
from pretrain.checkpoint.staging import Staging
from pretrain.distributed.world import World
from pretrain.errors import CheckpointError, ResourceError, check

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class SavingConfig:
    """How a run is saved, and how many steps stay on disk."""

    keep: int = 2  # newest committed steps that stay; older ones are deleted after the next commit
    keep_every: int = 0  # optimizer steps: saved steps that are multiples of it are milestones, which stay; 0 = none
    asynchronous: bool = True  # copy what a rank saves into host memory, and write it while training continues
    max_failures: int = 3  # saves in a row that may fail (a full disk, say) before the run stops with exit code 8
    mirror: str | None = None  # URL of a store (s3://, gs://, file:// ...) that gets a copy of each step; null: none
    mirror_wait_minutes: float = 10.0  # that the end of a run waits at most for copies that are not complete yet

    def __post_init__(self) -> None:
        check(self.keep >= 1, "checkpoint.keep", self.keep, "at least 1, or nothing could be resumed")
        check(self.keep_every >= 0, "checkpoint.keep_every", self.keep_every, "0 (no milestones) or optimizer steps")
        check(self.max_failures >= 1, "checkpoint.max_failures", self.max_failures, "at least 1")
        wait = self.mirror_wait_minutes
        check(0 <= wait <= 10_080, "checkpoint.mirror_wait_minutes", wait, "0 to 10,080 minutes, a week")


@dataclass(kw_only=True)
class CheckpointConfig(SavingConfig):
    """How a run is saved, how often, and how many steps stay on disk."""

    every: int = 1000  # optimizer steps; the last step is always saved

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.every >= 1, "checkpoint.every", self.every, "at least 1 optimizer step")
        rule = f"must be a multiple of checkpoint.every={self.every}, or most milestones would not be saved; or 0"
        check(self.keep_every % self.every == 0, "checkpoint.keep_every", self.keep_every, rule)


class _Answer(NamedTuple):
    """What a phase of a save brought on one rank, or what went wrong there."""

    written: Index | None = None
    problem: str | None = None
    of_disk: bool = True  # a problem that may pass, such as a full disk, and no fault of a program


class Best(NamedTuple):
    """A step of a run whose steps are compared, and the value that it is compared by."""

    step: int
    value: float


@dataclass
class _Save:
    """A save under way, as one rank sees it."""

    step: int
    required: bool
    temporary: Path
    state: bytes  # of state.json
    best: Best | None  # of the committed steps, once this one is
    phase: Future[_Answer]  # in the background: writing this rank's fragments, or the commit
    committing: bool = False  # all ranks have written; rank 0 commits, the others have nothing to do


class Checkpoints:
    """The committed steps of one run, under `directory`. All ranks call its methods, at the same step.

    A save has two phases, which a background thread of each rank runs: writing the fragments, then the commit. Between
    them ranks have to agree. They do so in `settle`, in the thread that trains: collectives of saving and of training
    can never meet, and every rank learns of a failure at the same step.
    """

    def __init__(self, directory: Path, cfg: SavingConfig, world: World) -> None:
        self.directory = directory
        self.cfg = cfg
        self.world = world
        self.failures = 0
        self.best: Best | None = None  # of the committed steps; it stays, whatever its age
        self.better: Callable[[float, float], bool] = operator.gt  # whether one value is better than another
        self.on_commit: Callable[[int, Path, bool], None] | None = None  # step, its directory, whether it is the best
        self.under_way: _Save | None = None  # one at most
        self._staging = Staging()
        self._background = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")

    def begin(self) -> None:
        """Delete what saves that were killed have left, once a resume is accepted. A collective."""
        if self.world.is_first:
            sweep(self.directory)
        self.world.barrier()

    def save(
        self,
        step: int,
        strategy: Checkpointable,
        state: dict[str, Any],
        *,
        value: float | None = None,
        required: bool = False,
    ) -> None:
        """Save the strategy's weights and moments and `state` (plain values), as they are now, as `step`.

        The first committed step of the best `value` stays on disk; `state.json` keeps it as `best`.
        Waits for the save before, if it is not done. Returns once the step is committed if it is `required` (the last
        one, or that of a run which was asked to stop) or saving is not asynchronous, else as soon as the values are
        copied; `settle` does the rest. Raises what `settle` raises.
        """
        self.settle(wait=True)
        [nonce, *_] = self.world.gather(secrets.token_hex(4))
        temporary = self.directory / f"{TEMPORARY}{step_name(step)}-{nonce}"
        best = self.best
        if value is not None and (best is None or self.better(value, best.value)):
            best = Best(step, value)
        body = json.dumps({**state, "strategy": strategy.state(), "step": step, "best": best}, indent=1).encode()
        fragments = list(strategy.fragments())
        wait = required or not self.cfg.asynchronous
        if not wait:
            fragments = self._staging.copy(fragments)
        written = self._background.submit(self._write_own, temporary, fragments)
        self.under_way = _Save(step, required, temporary, body, best, written)
        if wait:
            self.settle(wait=True)

    def settle(self, *, wait: bool = False) -> None:
        """Advance a pending save as far as all ranks are ready for it, or to its end; cheap if there is none.

        A failed write keeps the steps before it and lets training continue. Raises `ResourceError` after `max_failures`
        in a row, and at once for a save that was `required`; `CheckpointError` for what is no fault of the disk.
        """
        while self.under_way and (wait or self._all_ready(self.under_way)):
            self._advance(self.under_way)

    def close(self) -> None:
        """End the background thread after what it is at. Not a collective: after an error peers may be gone.

        A save that needs no peers any more is completed; among several ranks, one whose fragments are still being
        written is lost.
        """
        if self.world.size == 1:
            with suppress(ResourceError, CheckpointError):  # it is in the log; the error that ends the run matters more
                self.settle(wait=True)
        self._background.shutdown()

    def _all_ready(self, save: _Save) -> bool:
        [ready] = self.world.sum_ints(int(save.phase.done()))
        return ready == self.world.size

    def _advance(self, save: _Save) -> None:
        """Wait for the phase that a save is at, and start the next one, or end the save."""
        answers = [_Answer(*answer) for answer in self.world.gather(save.phase.result())]
        if any(answer.problem for answer in answers):
            self.under_way = None
            self._failed(save, answers)
        elif save.committing:
            self.under_way = None
            self.failures = 0
            self.best = save.best
            if self.on_commit:
                best = save.best is not None and save.best.step == save.step
                self.on_commit(save.step, self.directory / step_name(save.step), best)
        else:
            save.committing = True
            indices = [answer.written for answer in answers if answer.written]
            save.phase = self._background.submit(self._commit, save, indices)

    def _write_own(self, temporary: Path, fragments: list[Fragment]) -> _Answer:
        name = f"fragments-{self.world.rank:05d}-of-{self.world.size:05d}.safetensors"
        try:
            temporary.mkdir(parents=True, exist_ok=True)
            return _Answer(write_fragments(temporary / name, fragments))
        except Exception as error:  # whatever it is, all ranks have to learn of it
            return _failure(f"rank {self.world.rank}", error)

    def _commit(self, save: _Save, indices: list[Index]) -> _Answer:
        if self.world.is_first:
            try:
                commit(save.temporary, save.step, save.state, indices)
                best = save.best.step if save.best else None
                prune(self.directory, save.step, self.cfg.keep, best, self.cfg.keep_every)
            except Exception as error:  # as above
                return _failure("commit", error)
        return _Answer()

    def _failed(self, save: _Save, answers: list[_Answer]) -> None:
        problems = [answer.problem for answer in answers if answer.problem]
        faults = [answer.problem for answer in answers if answer.problem and not answer.of_disk]
        if self.world.is_first:
            shutil.rmtree(save.temporary, ignore_errors=True)
            log.warning("saving step %d failed (%s); the step before it stays", save.step, "; ".join(problems))
        if faults:
            rule = "no fault of the disk, so that a later save would fail as well"
            raise CheckpointError(
                f"{self.directory}: step {save.step} could not be saved ({faults[0]}): {rule}; once it is mended the "
                "same command resumes from the newest committed step"
            )
        self.failures += 1
        if save.required or self.failures >= self.cfg.max_failures:
            raise ResourceError(
                f"{self.directory}: step {save.step} could not be saved ({problems[0]}), failure {self.failures} in a "
                "row; free space there and start the same command again: it resumes from the newest committed step"
            )


def _failure(who: str, error: Exception) -> _Answer:
    """Return the answer for what a phase of a save raised; where a fault of a program was raised is said with it."""
    if isinstance(error, OSError):
        return _Answer(problem=f"{who}: {error}")
    log.debug("the error behind a save that failed:", exc_info=error)
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(place.filename).name}, line {place.lineno}, in {place.name}"
    return _Answer(problem=f"{who}: {type(error).__name__}: {error}, at {where}", of_disk=False)

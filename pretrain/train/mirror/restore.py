"""A run whose checkpoints are gone goes on from its mirror.

Holds the way back: rank 0 fetches the newest step that verifies, from where an earlier start had come to, and commits
it once all of it is on the disk.
"""

from __future__ import annotations

import errno
import logging
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from pretrain.checkpoint.commit import TEMPORARY, step_name, step_names
from pretrain.checkpoint.save import SavingConfig
from pretrain.distributed.world import World
from pretrain.errors import CheckpointError, ConfigError, HeadwaterError, ResourceError
from pretrain.files import fsync_path
from pretrain.train.mirror.base import BESIDE, KEY, SEAL_FILE
from pretrain.train.mirror.store import Changed, Store
from pretrain.train.run_dir.base import CHECKPOINTS, RunConfig, RunDirectory
from pretrain.train.run_dir.record import RECORD_FILE, read_record

T = TypeVar("T")

WAITS_S = [1.0, 5.0, 20.0]  # between attempts at one file
POLL_S = 0.2  # at which ranks look whether the one that fetches is done

_FULL = (errno.ENOSPC, errno.EDQUOT)
_KINDS = {kind.exit_code: kind for kind in (ConfigError, CheckpointError, ResourceError)}

log = logging.getLogger(__name__)


def is_mirrored(cfg: SavingConfig, run: RunConfig) -> bool:
    """Whether a run will go on from its mirror, so that it needs no source of first weights any more.

    One look: a store that does not answer is dealt with by `fetch_lost`.
    """
    if not cfg.mirror or step_names(run.directory / CHECKPOINTS):
        return False
    with suppress(Exception):  # each store has a library of its own
        return bool(Store(cfg.mirror, run.name).steps().complete)
    return False


def fetch_lost(cfg: SavingConfig, run: RunConfig, directory: RunDirectory | None, world: World) -> None:
    """Bring the newest step of the mirror that verifies into a run directory without steps. A collective.

    All ranks raise `CheckpointError` for a mirror that does not answer, or of whose steps none verifies, for to start
    over must not happen by itself; `ConfigError` for a run that must be fresh and is not, `ResourceError` for a full
    disk. Ranks exchange something all the time, so that none takes the fetching, however long, for a hang.
    """
    if not cfg.mirror:
        return
    fetch = None
    if directory and not step_names(run.directory / CHECKPOINTS):
        fetch = _Fetch(Store(cfg.mirror, run.name), run)
        fetch.start()
    while any(world.sum_ints(int(fetch is not None and fetch.is_alive()))):
        time.sleep(POLL_S)
    [failure, *_] = world.gather(fetch and fetch.failure)
    if directory and fetch:
        fetch.adopt(directory)
    if failure:
        code, words = failure
        raise _KINDS.get(code, HeadwaterError)(words)


class _Fetch(threading.Thread):
    """The fetching, in a thread that a stop of the run does not wait for."""

    def __init__(self, store: Store, run: RunConfig) -> None:
        super().__init__(name="mirror", daemon=True)
        self.store = store
        self.cfg = run
        self.path = run.directory
        self.notes: list[str] = []
        self.failure: tuple[int, str] | None = None  # exit code and words

    def run(self) -> None:
        try:
            self._fetch()
        except HeadwaterError as error:
            self.failure = (error.exit_code, str(error))
        except Exception as error:
            log.exception("a failure of ours, or of the store's library")
            self.failure = (HeadwaterError.exit_code, f"{KEY}: {type(error).__name__}: {error}")

    def adopt(self, directory: RunDirectory) -> None:
        """Take over what the run had recorded, beside what this start has, and note what happened."""
        if not self.failure and (self.path / RECORD_FILE).exists():
            kept = read_record(self.path)
            directory.record(**{key: value for key, value in kept.items() if directory.recorded(key) is None})
        for note in self.notes:
            directory.note(note)

    def _fetch(self) -> None:
        found = self._persistently(self.store.steps)
        self.notes += [f"{KEY}: {name} is passed over, its upload did not come to its end" for name in found.torn]
        if not found.complete:
            return
        if self.cfg.fresh:
            rule = "choose another run.name, or drop run.fresh to resume it"
            raise ConfigError(f"run.fresh=true: the mirror holds {found.complete[-1]} of {self.cfg.name}; {rule}")
        for name in reversed(found.complete):
            if not self._taken(name):
                continue
            self.notes.append(f"{KEY}: {self.path / CHECKPOINTS} had no step; {name} was fetched, and the run goes on")
            best = step_name(read_record(self.path).get("best_step", 0))
            if best < name and best in found.complete and self._taken(best):
                self.notes.append(f"{KEY}: {best}, the best step so far, was fetched, too")
            return
        rule = f"restore one, or leave {KEY} out to start over from step 0"
        raise CheckpointError(f"{KEY}: none of {len(found.complete)} steps verifies ({self.notes[-1]}); {rule}")

    def _taken(self, name: str) -> bool:
        """Fetch a step if it is as it was written, and note it if not."""
        try:
            self._take(name)
        except (ValueError, Changed, FileNotFoundError) as error:
            self.notes.append(f"{KEY}: {name} is passed over: {error}")
            return False
        return True

    def _take(self, name: str) -> None:
        """Fetch a step. Raises `ValueError`, `Changed` or `FileNotFoundError` if it is not as it was written."""
        seal = self._persistently(lambda: self.store.seal(name))
        if seal is None:
            raise FileNotFoundError(f"{SEAL_FILE} is gone")
        log.info("%s: fetching %s, %d bytes", KEY, name, sum(each["size"] for each in seal["files"].values()))
        place = self.path / CHECKPOINTS / f"{TEMPORARY}mirror-{name}"
        for file, listed in sorted(seal["files"].items()):
            self._persistently(lambda file=file, listed=listed: self.store.read(name, file, listed, place / file))
        for file in BESIDE:
            if (place / file).exists() and not (self.path / file).exists():  # what is still there may be newer
                (place / file).replace(self.path / file)
        step = self.path / CHECKPOINTS / name
        fsync_path(place / CHECKPOINTS / name)
        (place / CHECKPOINTS / name).replace(step)
        fsync_path(step.parent)
        shutil.rmtree(place, ignore_errors=True)

    def _persistently(self, call: Callable[[], T]) -> T:
        """Return what a call to the store returns, tried again a few times; see `fetch_lost` for what it raises."""
        for wait_s in [*WAITS_S, None]:
            try:
                return call()
            except Exception as error:  # each store has a library of its own
                if isinstance(error, OSError) and error.errno in _FULL:
                    raise ResourceError(f"{self.path}: {error}; free space there and start again: it goes on") from None
                if wait_s is None:
                    if isinstance(error, ValueError | Changed | FileNotFoundError):
                        raise
                    rule = f"whether the run has steps there is not known; look at the store, or leave {KEY} out"
                    raise CheckpointError(f"{KEY}: does not answer ({type(error).__name__}: {error}); {rule}") from None
            time.sleep(wait_s)
        raise AssertionError("unreachable")

"""Committed steps on their way to a mirror, in a thread of rank 0: the run directory, which ranks share, has all files.

Holds when a step is copied and what becomes of failures. None of them reaches the run: it trains on, is told once for
each kind of failure, and at its end waits a bounded time.
"""

from __future__ import annotations

import io
import logging
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pretrain.checkpoint.commit import MANIFEST_FILE, TEMPORARY, step_names, step_number
from pretrain.checkpoint.load import Listed, StepManifest
from pretrain.checkpoint.save import SavingConfig
from pretrain.commands import StopRequest
from pretrain.files import hash_file, read_json
from pretrain.train.mirror.base import BESIDE, KEY
from pretrain.train.mirror.store import Changed, Store
from pretrain.train.run_dir.base import CHECKPOINTS, RunConfig
from pretrain.train.run_dir.record import RECORD_FILE

WAITS_S = [1.0, 10.0, 60.0]  # between attempts at one step
STOPPED_S = 30.0  # that a run waits at most that failed or was stopped: whoever stopped it may soon kill it
POLL_S = 0.05

log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Step:
    """A step to be copied."""

    name: str
    folder: Path  # its files, as links of our own: the step itself may be deleted before its turn
    record: bytes  # of run.json, as it was at the commit
    kept: frozenset[str]  # steps that stay on the mirror as they do on the disk
    anew: bool  # whether or not a copy is there
    copied: dict[str, Listed] = field(default_factory=dict)  # by path in the run directory


class Mirror:
    """The copies of one run's steps. Enter it, `add` steps, leave it: methods return at once but for `__exit__`."""

    def __init__(self, cfg: SavingConfig, run: RunConfig, stop: StopRequest, store: Store) -> None:
        self.cfg = cfg
        self.run = run.directory
        self.stop = stop
        self.store = store
        self.failures: Counter[str] = Counter()  # by kind
        self.passed_over = 0  # steps that newer ones overtook
        self.newest: str | None = None  # step that is known to be there
        self._waiting: _Step | None = None
        self._at: _Step | None = None
        self._changed = threading.Condition()
        self._ended = threading.Event()
        # No executor: Python would wait for its threads at exit, however long a store hangs.
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)

    @classmethod
    def of(cls, cfg: SavingConfig, run: RunConfig, stop: StopRequest) -> Mirror | None:
        """Return the mirror of a configuration, None if it names none."""
        return cls(cfg, run, stop, Store(cfg.mirror, run.name)) if cfg.mirror else None

    def __enter__(self) -> Mirror:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait for copies under way, at most `mirror_wait_minutes`, or `STOPPED_S` after a failure or a stop."""
        begun = time.monotonic()
        limits = [60 * self.cfg.mirror_wait_minutes, STOPPED_S]
        while self._pending() and time.monotonic() - begun < (min(limits) if kind or self.stop.received else limits[0]):
            time.sleep(POLL_S)
        self._ended.set()
        with self._changed:
            left = [step.name for step in (self._at, self._waiting) if step]
            self._changed.notify_all()
        if left:
            log.warning("%s: %s is not complete there, and is waited for no longer", KEY, " and ".join(left))
        if self.failures:
            kinds = ", ".join(f"{number} x {kind}" for kind, number in self.failures.items())
            there = f"{self.newest} is the newest step there" if self.newest else "no step of this start is there"
            log.warning("%s: failed attempts: %s; %s", KEY, kinds, there)

    def add(self, step: Path, others: Iterable[str] = (), *, anew: bool = True) -> None:
        """Copy a committed step when its turn comes; it takes the place of one that waits. `others` stay there, too.

        Not `anew`: unless it is there, complete.
        """
        links = step.with_name(f"{TEMPORARY}mirror-{step.name}")
        try:
            shutil.rmtree(links, ignore_errors=True)
            links.mkdir()
            for file in step.iterdir():
                os.link(file, links / file.name)
        except OSError:  # a file system without links: then the copy must be done before the step is deleted
            shutil.rmtree(links, ignore_errors=True)
            links = step
        kept = frozenset([*step_names(step.parent), *others])
        new = _Step(step.name, links, (self.run / RECORD_FILE).read_bytes(), kept, anew)
        with self._changed:
            old, self._waiting = self._waiting, new
            self._changed.notify_all()
        if old:
            self._forget(old)
            self.passed_over += 1
            if self.passed_over == 1:
                log.warning("%s: slower than saves: %s is passed over, as others may be", KEY, old.name)

    def _pending(self) -> bool:
        with self._changed:
            return bool(self._at or self._waiting)

    def _work(self) -> None:
        while not self._ended.is_set():
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._ended.is_set())
                self._at, self._waiting = self._waiting, None
            if self._at:
                self._copy(self._at)
                self._forget(self._at)
                with self._changed:
                    self._at = None

    def _forget(self, step: _Step) -> None:
        if step.folder.name.startswith(TEMPORARY):
            shutil.rmtree(step.folder, ignore_errors=True)

    def _copy(self, step: _Step) -> None:
        for wait_s in [*WAITS_S, None]:
            try:
                self._upload(step)
                self.newest = step.name
                self._prune(step)
                return
            except Exception as error:  # each store has a library of its own
                kind = type(error).__name__
                self.failures[kind] += 1
                if self.failures[kind] == 1:
                    then = "another attempt follows" if wait_s else "the next step is another attempt"
                    log.warning("%s: %s is not copied (%s: %s); %s", KEY, step.name, kind, error, then)
            if wait_s is not None and self._ended.wait(wait_s):
                return

    def _upload(self, step: _Step) -> None:
        """Copy what is not copied yet. Raises what the store does, and `Changed` for a file that is damaged here."""
        inside = f"{CHECKPOINTS}/{step.name}"
        if not step.copied:
            if not step.anew and self._is_there(step, f"{inside}/{MANIFEST_FILE}"):
                return
            self.store.begin(step.name)
        listed = read_json(step.folder / MANIFEST_FILE, StepManifest)["files"]
        for name in [*listed, MANIFEST_FILE]:
            self._write(step, f"{inside}/{name}", step.folder / name, listed.get(name))
        step.copied[RECORD_FILE] = self.store.write(step.name, RECORD_FILE, io.BytesIO(step.record), len(step.record))
        for name in BESIDE:
            if name != RECORD_FILE and (self.run / name).is_file():
                self._write(step, name, self.run / name)
        self.store.complete(step.name, step.copied)

    def _is_there(self, step: _Step, manifest: str) -> bool:
        """Whether a complete copy of just this step is there, from an earlier start of the run."""
        try:
            seal = self.store.seal(step.name)
        except ValueError:  # damaged: it is written anew
            return False
        files = seal["files"] if seal else {}
        return manifest in files and files[manifest]["sha256"] == hash_file(step.folder / MANIFEST_FILE)

    def _write(self, step: _Step, name: str, path: Path, expected: Listed | None = None) -> None:
        if name in step.copied:
            return
        with path.open("rb") as file:  # metrics grow while they are read: as many bytes as there are now
            copied = self.store.write(step.name, name, file, path.stat().st_size)
        if expected not in (None, copied):
            raise Changed(f"{path}: not as its manifest says; the disk of the run has damaged it")
        step.copied[name] = copied

    def _prune(self, step: _Step) -> None:
        """Delete uploads that are torn, and steps that are gone from the disk, but the newest few and milestones."""
        found, every = self.store.steps(), self.cfg.keep_every
        milestones = [name for name in found.complete if every and step_number(Path(name)) % every == 0]
        stay = {*found.complete[-self.cfg.keep :], *milestones, *step.kept}
        for name in [*found.complete, *found.torn]:
            if name < step.name and (name in found.torn or name not in stay):
                self.store.remove(name)

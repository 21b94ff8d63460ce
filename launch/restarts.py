"""Restarts of the ranks on this machine: after which ends, how often, and with how many of them.

Holds the rule; processes are in `ranks`. Job scripts of Slurm follow the same one (`slurm/job.sh`): a start that
brought a new checkpoint was worth it, and those that brought none are counted.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.ranks import Outcome
from pretrain.checkpoint.commit import step_names
from pretrain.errors import ConfigError, PeerLost, TimedOut

RETRIED = (TimedOut.exit_code, PeerLost.exit_code)  # a signal that killed a rank counts as the latter
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0  # before a restart: doubled with each that brought no new checkpoint
_TRY = "import sys, torch; torch.ones(1, device=f'cuda:{sys.argv[1]}').item()"
TRY_S = 120.0  # that a device may take to answer


@dataclass(frozen=True, kw_only=True)
class Elastic:
    """How ranks are started again.

    A place is where a rank runs: its number among those that the first start had, which on a GPU is that of its device.
    """

    start: Callable[[Sequence[int], bool], Outcome]  # runs ranks in these places; whether it is a restart
    newest: Callable[[], str]  # name of the newest checkpoint, "" without one
    max_restarts: int  # in a row without a new checkpoint
    fewest: int  # ranks to go on with
    refuse: Callable[[int], None]  # raises `ConfigError` where so many ranks cannot run
    dead: Callable[[Sequence[int]], list[int]] = lambda places: []  # those of places whose device does not answer

    def run(self, ranks: int) -> int:
        """Start so many ranks, and again where it may help; return the exit code of the last start.

        They are started again after a hang and a lost rank, from the newest checkpoint. A rank that was lost in two
        starts in a row without a new checkpoint, or whose device is dead, is left out, if `fewest` allows. All other
        ends, and those that somebody asked for, are passed on.
        """
        places, idle, suspect, seen = list(range(ranks)), 0, None, self.newest()
        outcome = self.start(places, False)
        while outcome.code in RETRIED and not outcome.asked:
            newest = self.newest()
            if newest > seen:
                idle, suspect, seen = 0, None, newest
            place = None if outcome.lost is None else places[outcome.lost]
            gone = self.dead(places) if len(places) > self.fewest else []
            if place is not None and place == suspect and len(places) > self.fewest:
                gone.append(place)
            if self.max_restarts and gone:
                left = self._left(places, gone)
                if not left:
                    break
                places, idle, place = left, 0, None
            if idle >= self.max_restarts:
                if self.max_restarts:
                    _say(f"{idle} restarts brought no new checkpoint: it ends")
                break
            suspect, idle = place, idle + 1
            pause = min(FIRST_PAUSE_S * 2 ** (idle - 1), LONGEST_PAUSE_S)
            count = f"restart {idle} of {self.max_restarts} without a new checkpoint"
            _say(f"{count}: {len(places)} ranks, from {newest or 'the beginning'}, in {pause:.0f} s")
            time.sleep(pause)
            outcome = self.start(places, True)
        return outcome.code

    def _left(self, places: Sequence[int], gone: Sequence[int]) -> list[int]:
        """Return the places to go on with, as many as can share a step; none if no number of them can."""
        left = [place for place in places if place not in gone]
        lost = ", ".join(map(str, sorted({places.index(place) for place in gone})))
        _say(f"rank {lost} of {len(places)} cannot start again")
        for count in range(len(left), self.fewest - 1, -1):
            try:
                self.refuse(count)
            except ConfigError as error:
                _say(f"{count} ranks cannot go on: {error}")
            else:
                _say(f"it goes on with {count} of {len(places)} ranks")
                return left[:count]
        _say(f"min_nproc={self.fewest}: no number of the ranks that are left can go on; mend the machine and resume")
        return []


def newest_checkpoint(directory: Path) -> str:
    """Return the name of the newest step in a directory of checkpoints, "" without one."""
    return next(reversed(step_names(directory)), "")


def sizes_that_fit(key: str, fewest: int, most: int, refuse: Callable[[int], None]) -> list[int]:
    """Return the sizes from `most` down to `fewest`, the value of a setting, with which a run can go on.

    `refuse` raises `ConfigError` for a size that it cannot run with. That of `most` passes, as does one for a setting
    that no size below it meets.
    """
    refuse(most)
    sizes = [most]
    reason: ConfigError | None = None
    for size in range(most - 1, fewest - 1, -1):
        try:
            refuse(size)
        except ConfigError as error:
            reason = error
        else:
            sizes.append(size)
    if reason and sizes == [most]:
        raise ConfigError(f"{key}={fewest}: a run could not go on with any size from it to {most - 1}: {reason}")
    return sizes


def dead_devices(places: Sequence[int]) -> list[int]:
    """Return those of the CUDA devices with these numbers that do not answer: each is tried by a process of its own."""
    tries = [subprocess.Popen([sys.executable, "-c", _TRY, str(place)], stderr=subprocess.DEVNULL) for place in places]
    deadline = time.monotonic() + TRY_S
    found = []
    for place, process in zip(places, tries, strict=True):
        try:
            code = process.wait(max(deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            process.kill()
            code = 1
        found += [place] if code else []
    return found


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

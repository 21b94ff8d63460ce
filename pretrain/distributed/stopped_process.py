"""Processes of this host that answer nothing any more: known by number and birth, and killed.

Linux alone tells when a process was born, and so whether a number still is that of the same one.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import NamedTuple


class Process(NamedTuple):
    """A process of a host. Numbers come again; one with the same birth is the same."""

    pid: int
    born: int  # clock ticks since the host started; 0: not known

    @classmethod
    def of(cls, pid: int) -> Process:
        """Return the process that has a number now."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return cls(pid, 0)
        return cls(pid, int(stat.rpartition(")")[2].split()[19]))  # field 22 of proc_pid_stat(5)

    def kill(self) -> bool:
        """Send it SIGKILL, which a stopped process cannot but obey; return whether it was there, and ours to kill."""
        try:
            handle = os.pidfd_open(self.pid)
        except OSError:
            return False
        try:
            if not self.born or Process.of(self.pid) != self:
                return False
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        except OSError:
            return False
        finally:
            os.close(handle)
        return True


NOBODY = Process(0, 0)

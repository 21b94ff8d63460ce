"""Commands on a terminal of their own, at whose keyboard a test sits."""

import os
import re
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from forks import FAST
from waiting import until

CTRL_C = b"\x03"


class Terminal:
    """A process in the foreground of a terminal, which sends Ctrl-C to its whole group, as a shell's would be."""

    def __init__(self, words: Sequence[str], cwd: Path) -> None:
        self.shown = ""
        self._keyboard, screen = os.openpty()
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), screen)
        self.process = subprocess.Popen(["setsid", "--ctty", *words], cwd=cwd, env=os.environ | FAST, **streams)
        os.close(screen)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        with suppress(OSError):  # the last of those who had it open is gone
            while data := os.read(self._keyboard, 65536):
                self.shown += data.decode(errors="replace")

    def press(self, key: bytes, *, after: str) -> None:
        """Press a key once the screen shows a pattern."""
        until(lambda: re.search(after, self.shown) or self.process.poll() is not None)
        assert self.process.poll() is None, self.shown
        os.write(self._keyboard, key)

    def end(self) -> int:
        """Return the exit code, once nobody writes to the screen any more."""
        code = self.process.wait(120)
        self._reader.join(60)
        os.close(self._keyboard)
        return code

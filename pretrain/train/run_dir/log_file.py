"""The file that keeps a run's messages: a help to people, which a run can do without.

Holds the handler; which messages it gets is for `base` to say.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

from pretrain.commands import say


class LogFile(logging.FileHandler):
    """Appends messages to a file. Where that cannot be written, as on a full disk, it says so once and goes on."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8", errors="backslashreplace")
        self._failed = False

    def handleError(self, record: logging.LogRecord) -> None:
        """Say once what went wrong; logging's own answer is a page of stack frames for each message."""
        if not self._failed:
            self._failed = True
            say(f"warning: {self.baseFilename}: messages are lost, it cannot be written")

    def close(self) -> None:
        """Close the file, whether the rest of it can be written or not."""
        with suppress(OSError):
            super().close()

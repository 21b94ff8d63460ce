"""Waiting for what another process does, with a limit."""

import time
from collections.abc import Callable


def until(done: Callable[[], object], seconds: float = 200.0) -> None:
    """Wait until `done` returns something true; fail after so many seconds."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"nothing came within {seconds:.0f} s"
        time.sleep(0.005)

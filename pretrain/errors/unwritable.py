"""The error for a file of a run that the system does not let be written. Free of torch and Hydra."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pretrain.errors import ResourceError


@contextmanager
def writes_named(path: Path) -> Iterator[None]:
    """While in here, turn an `OSError` into a `ResourceError` that names the file which is being written."""
    try:
        yield
    except OSError as error:
        rule = "free space there, or let it be written, and start the same command again: the run resumes"
        raise ResourceError(f"{path}: cannot be written ({error}); {rule}") from error

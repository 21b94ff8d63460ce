"""The kinds of failure, the exit code of each, and how a command ends with it.

Holds no policy: what is refused, and when, is decided where the value is used; what may be said of a value is decided
in `redaction`. Free of torch and Hydra.
"""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from pretrain.errors.redaction import redacted


class HeadwaterError(Exception):
    """A failure that the user can act on; the message names the thing, its value, the rule and the fix, no secret."""

    exit_code = 1

    def __str__(self) -> str:
        return redacted(super().__str__())


class ConfigError(HeadwaterError, ValueError):
    """A configuration or an input refused before training; also ranks that were not started alike."""

    exit_code = 2


class DataError(HeadwaterError):
    """A corpus, shard or document that cannot be trained on."""

    exit_code = 3


class CheckpointError(HeadwaterError):
    """A checkpoint that is torn, foreign, from the future or of another model."""

    exit_code = 4


class NumericalError(HeadwaterError):
    """Losses or gradients that stayed non-finite for longer than the run allows."""

    exit_code = 5


class TimedOut(HeadwaterError):
    """Ranks that waited in vain for another one, which hangs or never came."""

    exit_code = 6


class PeerLost(HeadwaterError):
    """Another rank that ended, or its network; the remaining ranks cannot continue."""

    exit_code = 7


class ResourceError(HeadwaterError):
    """Disk or memory that ran out."""

    exit_code = 8


class Preempted(HeadwaterError):
    """The run was stopped on request; its checkpoint is written, and the same command resumes it."""

    exit_code = 85


def check(condition: bool, key: str, value: object, rule: str) -> None:
    """Raise a `ConfigError` (a `ValueError`) that names key, value and rule unless the condition holds.

    Dataclasses call it in `__post_init__`, so that a refused value never reaches the code behind it.
    """
    if not condition:
        raise ConfigError(f"{key}={redacted(value, key)}: {rule}")


@contextmanager
def exit_code_to(report: Callable[[int], None]) -> Iterator[None]:
    """Call `report` with the exit code that the outcome of the block stands for; errors pass through."""
    code = 1  # a bug, unless something better is known
    try:
        yield
        code = 0
    except HeadwaterError as error:
        code = error.exit_code
        raise
    finally:
        report(code)


def exit_code_of(body: Callable[[], object]) -> int:
    """Run the body of a command and return its exit code; the message of a `HeadwaterError` goes to standard error."""
    try:
        body()
    except HeadwaterError as error:
        print(error, file=sys.stderr, flush=True)
        return error.exit_code
    return 0


def command(parser: ArgumentParser, body: Callable[[Namespace], object], arguments: Sequence[str] | None = None) -> int:
    """Run a command: parse its arguments, pass them to `body`, print what that returns unless it is None.

    Returns the exit code.
    """
    options = parser.parse_args(arguments)

    def run() -> None:
        with closed_pipe_is_no_error():
            if (answer := body(options)) is not None:
                print(answer)

    return exit_code_of(run)


@contextmanager
def closed_pipe_is_no_error() -> Iterator[None]:
    """While in here, whoever reads standard output may close it early, as `head` does. Ends by flushing it."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:  # point stdout elsewhere, or Python flushes it once more at exit and fails
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

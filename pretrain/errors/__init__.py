"""The kinds of failure and the exit code of each.

Holds no policy: what is refused, and when, is decided where the value is used; what may be said of a value is decided
in `redaction`. Free of torch and Hydra.
"""

from __future__ import annotations

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


class Diverged(NumericalError):
    """A loss that rose and stayed, or updates skipped for longer than the run allows, where detours may go around.

    The steps from `first` optimizer steps on, up to `step`, are those at which it showed.
    """

    def __init__(self, message: str, *, first: int, step: int) -> None:
        super().__init__(message)
        self.first = first
        self.step = step


class TimedOut(HeadwaterError):
    """Ranks that waited in vain for another one, which hangs or never came."""

    exit_code = 6


class Mismatched(TimedOut):
    """Ranks that entered different collectives, and would have waited in vain for each other."""


class PeerLost(HeadwaterError):
    """Another rank that ended, or its network; the remaining ranks cannot continue."""

    exit_code = 7


class ResourceError(HeadwaterError):
    """Disk or memory that ran out."""

    exit_code = 8


class Preempted(BaseException):
    """The command was stopped on request; what is saved is kept, and the same command goes on from there.

    Like KeyboardInterrupt it is no `Exception`: code that it passes through must not take it for a failure of its own.
    """

    exit_code = 85


def check(condition: bool, key: str, value: object, rule: str) -> None:
    """Raise a `ConfigError` (a `ValueError`) that names key, value and rule unless the condition holds.

    Dataclasses call it in `__post_init__`, so that a refused value never reaches the code behind it.
    """
    if not condition:
        raise ConfigError(f"{key}={as_written(redacted(value, key))}: {rule}")


def as_written(value: object) -> object:
    """Return a value as YAML, JSON and our commands write it: `true`, `false` and `null`; else the value itself."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else value

"""Commands: how one begins, how it is stopped, and how it ends with the exit code of what happened.

Holds signals and standard streams; what a command does is its own. Free of torch and Hydra.
"""

from __future__ import annotations

import atexit
import errno
import io
import os
import signal
import sys
import threading
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from pretrain.errors import ConfigError, HeadwaterError, Preempted, ResourceError

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # each asks a command to end; a run that trains saves first
HANDLED = (*STOP_SIGNALS, signal.SIGINT)
INTERRUPTED = 128 + signal.SIGINT  # exit code after Ctrl-C, as of a shell

_STOPPED = "stopped on request; the same command goes on from what is saved"


def start_command() -> None:
    """Make this process one that can be stopped, and that can print any text. Commands call it before all imports.

    From now on SIGTERM, SIGUSR1 and Ctrl-C end it at once, until a `StopRequest` takes over: as process 1 of a
    container it would ignore a signal that it does not handle. What an output cannot encode is written as an escape.
    """
    for number in HANDLED:
        if number != signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:  # ignored in a shell's background
            signal.signal(number, _end_at_once)
        atexit.register(signal.signal, number, signal.SIG_IGN)  # at its end the interpreter takes handlers away
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)  # the process that became this one may have held them back
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:  # closed from the start: the next file that is opened must not get its number
            _send_to_nowhere(number)
        if number == 0:
            sys.stdin = stream or io.TextIOWrapper(io.BufferedReader(io.BytesIO()))
        else:
            encoding = stream.encoding if stream else None
            at_once = stream is not None and (stream.line_buffering or stream.write_through)
            output = io.BufferedWriter(_Output(number, "w", closefd=False))
            setattr(sys, name, io.TextIOWrapper(output, encoding, "backslashreplace", line_buffering=at_once))
    for word in sys.argv:
        if not word.isascii() and word.encode(errors="ignore").decode() != word:
            rule = f"no text in the encoding of this locale, {sys.getfilesystemencoding()}"
            print(f"{word!a}: {rule}; set LC_ALL=C.UTF-8, or rename the file", file=sys.stderr)
            sys.exit(ConfigError.exit_code)


class _Output(io.FileIO):
    """Standard output or standard error. Once nobody reads it any more, what is written to it goes nowhere.

    A run goes on without its terminal, and `head` has had enough. On standard output any other failure, such as a full
    disk, raises `ResourceError`, once.
    """

    def write(self, data: Any, /) -> int | None:
        try:
            return super().write(data)
        except OSError as error:
            _send_to_nowhere(self.fileno())
            if error.errno not in (errno.EPIPE, errno.EIO) and self.fileno() == sys.stdout.fileno():
                raise ResourceError(f"standard output: cannot be written ({error.strerror}); free space") from None
            return len(data)


def _send_to_nowhere(number: int) -> None:
    """Let a descriptor, open or not, be one of the null device, for child processes too."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere != number:
        os.dup2(nowhere, number)
        os.close(nowhere)
    os.set_inheritable(number, True)


def _end_at_once(number: int, frame: FrameType | None) -> None:
    """End the process. The import system and destructors would drop an exception that a handler raises in them."""
    said, code = ("interrupted", INTERRUPTED) if number == signal.SIGINT else (_STOPPED, Preempted.exit_code)
    with suppress(OSError):  # nobody may read it
        os.write(2, f"{said}\n".encode())
    os._exit(code)


@contextmanager
def signals_held() -> Iterator[None]:
    """Hold back what asks to stop until the end of the block; processes that are started in it hold it back, too."""
    late: list[int] = []
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
    handlers = {}
    if threading.current_thread() is threading.main_thread():  # which runs the handler of what another thread receives
        heeded = [number for number in HANDLED if signal.getsignal(number) != signal.SIG_IGN]
        handlers = {number: signal.signal(number, lambda number, frame: late.append(number)) for number in heeded}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
        for number in late:
            signal.raise_signal(number)


class StopRequest:
    """Whether SIGTERM or SIGUSR1 asked this process to stop: for commands that have something to put in order.

    While training is under way the handler sets a flag and does nothing else. Before, when there is nothing to save,
    it raises `Preempted`; a second signal does not wait for what this sets going. Ctrl-C raises KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self.received = False
        self.training = False
        for number in STOP_SIGNALS:
            signal.signal(number, self._receive)
        if signal.getsignal(signal.SIGINT) is _end_at_once:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        again, self.received = self.received, True
        if self.training:
            return
        if again:
            _end_at_once(number, frame)
        raise Preempted(_STOPPED)


@contextmanager
def exit_code_to(report: Callable[[int], None]) -> Iterator[None]:
    """Call `report` with the exit code that the outcome of the block stands for; errors pass through."""
    code = 1  # a bug, unless something better is known
    try:
        yield
        code = 0
    except (HeadwaterError, Preempted) as error:
        code = error.exit_code
        raise
    except KeyboardInterrupt:
        code = INTERRUPTED
        raise
    finally:
        report(code)


def exit_code_of(body: Callable[[], object]) -> int:
    """Run the body of a command and return its exit code; why it failed or stopped goes to standard error."""
    try:
        body()
        sys.stdout.flush()  # here a failure to write has a message and an exit code; at the interpreter's exit none
    except (HeadwaterError, Preempted) as error:
        print(error, file=sys.stderr, flush=True)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        return INTERRUPTED
    return 0


def command(parser: ArgumentParser, body: Callable[[Namespace], object], arguments: Sequence[str] | None = None) -> int:
    """Run a command: parse its arguments, pass them to `body`, print what that returns unless it is None.

    Returns the exit code.
    """

    def run() -> None:
        if (answer := body(parser.parse_args(arguments))) is not None:
            print(answer)

    return exit_code_of(run)

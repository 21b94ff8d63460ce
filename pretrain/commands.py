"""Commands: how one begins, how it is stopped, and how it ends with the exit code of what happened.

Holds signals and standard streams; what a command does is its own. Free of torch and Hydra.
"""

from __future__ import annotations

import atexit
import errno
import gc
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any

from pretrain.errors import ConfigError, HeadwaterError, Preempted, ResourceError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # of schedulers and launchers
HANDLED = (*STOP_SIGNALS, signal.SIGINT)  # each asks a command to stop; a run that trains saves first
INTERRUPTED = 128 + signal.SIGINT  # exit code after a second Ctrl-C, as of a shell
CPP_LOG_LEVEL = "TORCH_CPP_LOG_LEVEL"  # which messages of torch's C++ are printed; read once, when torch is imported

_NOTHING_TO_SAVE = "stopped with nothing to save; the same command starts again"
_AT_ONCE = "ended at once; what was saved before is kept"


def start_command() -> None:
    """Make this process one that can be stopped, and that can print any text. Commands call it before all imports.

    From now on SIGTERM, SIGUSR1 and Ctrl-C end it at once, with 85, until a `StopRequest` takes over: as process 1 of
    a container it would ignore a signal that it does not handle. What an output cannot encode is written as an escape.
    Warnings of torch's C++ are not printed, unless the user says so: where another rank is gone, each is a page of
    stack frames above the line that says which one.
    """
    os.environ.setdefault(CPP_LOG_LEVEL, "ERROR")
    gc.disable()  # until the body runs: what imports make stays, and looking through it takes a tenth of the start
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
    say(_NOTHING_TO_SAVE)
    os._exit(Preempted.exit_code)


def say(text: str) -> None:
    """Write a line to standard error from a handler of signals, where `print` may not be used; on the first rank only.

    On a terminal it begins a new line, behind the ^C or the bar that may stand there.
    """
    if _speaks():
        break_line = "\n" if os.isatty(2) else ""
        with suppress(OSError):  # nobody may read it
            os.write(2, f"{break_line}{text}\n".encode())


def _speaks() -> bool:
    """Whether this process is alone, or the first of all ranks: what all of them know is said once."""
    return os.environ.get("RANK", "0") == "0"


def _heeded() -> list[signal.Signals]:
    """Return the signals that are not ignored, as Ctrl-C is in a shell's background, and whose handlers we know."""
    return [number for number in HANDLED if signal.getsignal(number) not in (signal.SIG_IGN, None)]


@contextmanager
def signals_held() -> Iterator[None]:
    """Hold back what asks to stop until the end of the block; processes that are started in it hold it back, too."""
    late: list[int] = []
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
    handlers = {}
    if threading.current_thread() is threading.main_thread():  # which runs the handler of what another thread receives
        handlers = {number: signal.signal(number, lambda number, frame: late.append(number)) for number in _heeded()}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
        for number in late:
            signal.raise_signal(number)


class StopRequest:
    """Whether Ctrl-C, SIGTERM or SIGUSR1 asked this process to stop: for what has something to put in order.

    Handles them inside its `with` block, if that is in the main thread: Python handles signals nowhere else. While
    training is under way the handler sets a flag and says so. Before, when there is nothing to save, it raises
    `Preempted`, and a further signal does not wait for what this sets going. A second Ctrl-C ends a command at once; in
    a process that is no command of ours, such as a notebook, it does what it did before the block.
    """

    def __init__(self, early: str) -> None:
        self.received = False
        self.training = False
        self._early = early  # what to say of a stop before training
        self._interrupted = False
        self._before: dict[int, Any] = {}  # the handlers outside of the block

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in _heeded()}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            if not (self.received and handler is _end_at_once):  # a command that ends may yet be told to do so at once
                signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        again, self.received = self.received, True
        of_user, interrupted = number == signal.SIGINT, self._interrupted
        self._interrupted |= of_user
        if (of_user and interrupted) or (again and not self.training):
            self._end(number)
        elif not self.training:
            raise Preempted(self._early)
        elif of_user:
            say("stopping: the step under way is finished and saved; Ctrl-C again ends at once")

    def _end(self, number: int) -> None:
        if self._before[number] is _end_at_once:
            say(_AT_ONCE)
            os._exit(INTERRUPTED if number == signal.SIGINT else Preempted.exit_code)
        signal.signal(number, self._before[number])
        signal.raise_signal(number)


@contextmanager
def exit_code_to(report: Callable[[int], None]) -> Iterator[None]:
    """Call `report` with the exit code that the outcome of the block stands for; errors pass through.

    Where nothing can be written any more, an error of the block stays the reason of the end; without one, that is it:
    raises `ResourceError`.
    """
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
        try:
            report(code)
        except (OSError, ResourceError) as error:
            if code == 0:
                raise ResourceError(f"the end of the run cannot be recorded ({error}); free space there") from error
            say(f"nor can the end of the run be recorded ({error})")


def exit_code_of(body: Callable[[], object]) -> int:
    """Run the body of a command and return its exit code; why it failed or stopped goes to standard error."""
    if not gc.isenabled():
        gc.freeze()  # what imports made: the first collection would look through all of it
        gc.enable()
    try:
        body()
        sys.stdout.flush()  # here a failure to write has a message and an exit code; at the interpreter's exit none
    except (HeadwaterError, Preempted) as error:
        if isinstance(error, HeadwaterError) or _speaks():
            print(error, file=sys.stderr, flush=True)
        return error.exit_code
    except KeyboardInterrupt:
        print(_AT_ONCE, file=sys.stderr, flush=True)
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

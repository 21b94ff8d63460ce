"""Processes with little to pay for: forked from one that has imported torch, DeepSpeed and the other libraries.

What a test asks of the process itself (its imports, the interpreter's end, its environment while it starts) needs a
fresh interpreter, and `subprocess`.
"""

import atexit
import json
import os
import pickle
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

FAST = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
PLAIN = dict(os.environ)  # before any test has changed it


@cache
def _control(*options: str) -> socket.socket:
    """Start a server of this process, which ends with it; return the socket on which it takes connections."""
    ours, theirs = socket.socketpair()
    line = [sys.executable, str(Path(__file__).with_name("fork_server.py")), str(theirs.fileno()), *options]
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    server = subprocess.Popen(line, env=PLAIN | FAST, pass_fds=[theirs.fileno()], **quiet)
    theirs.close()
    atexit.register(lambda: (ours.close(), server.wait()))
    return ours


class Forked:
    """A process: a program (`-m NAME ...` or `-c CODE ...`) or a call of a function that can be pickled.

    Has what tests use of `subprocess.Popen`; what it writes can be read at any time.
    """

    def __init__(
        self,
        *words: str,
        call: tuple[Callable[..., None], tuple] | None = None,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        fake_cuda: bool = False,  # torch has a CUDA device that is not there; see `fake_cuda`
    ) -> None:
        self.args, self.returncode = words, None
        self._outputs = [tempfile.TemporaryFile("w+") for _ in range(2)]  # noqa: SIM115
        request = {
            "words": words,
            "cwd": str(cwd or Path.cwd()),
            "environment": dict(os.environ if env is None else env) | FAST,
        }
        for name, file in zip(("stdout", "stderr"), self._outputs, strict=True):
            request[name] = f"/proc/{os.getpid()}/fd/{file.fileno()}"
        if call:
            request |= {"call": pickle.dumps(call), "path": sys.path}
        ours, theirs = socket.socketpair()
        socket.send_fds(_control(*(["fake_cuda"] if fake_cuda else [])), [b"."], [theirs.fileno()])
        theirs.close()
        self.connection = Connection(ours.detach())
        self.connection.send(request)
        self.pid: int = self.connection.recv()

    @property
    def stdout(self) -> str:
        return self._read(0)

    @property
    def stderr(self) -> str:
        return self._read(1)

    def _read(self, number: int) -> str:
        size = os.fstat(self._outputs[number].fileno()).st_size
        return os.pread(self._outputs[number].fileno(), size, 0).decode(errors="replace")

    def poll(self) -> int | None:
        """Return the exit code, None while it runs."""
        if self.returncode is None and self.connection.poll():
            self.returncode = self.connection.recv()
        return self.returncode

    def wait(self, timeout: float = 280) -> int:
        """Return the exit code at its end; kill it after so many seconds."""
        if self.returncode is None and not self.connection.poll(timeout):
            self.kill()
            self.returncode = self.connection.recv()
            raise subprocess.TimeoutExpired(self.args, timeout, self.stdout, self.stderr)
        return self.poll()

    def send_signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def python(*words: str, cwd: Path | None = None, env: Mapping[str, str] | None = None, timeout: float = 280):
    """Run a program to its end and return what `subprocess.run` does, of text."""
    process = Forked(*words, cwd=cwd, env=env)
    code = process.wait(timeout)
    return subprocess.CompletedProcess(words, code, process.stdout, process.stderr)


def on_fake_cuda(function: Callable[..., Any], *arguments: Any, timeout: float = 280) -> Any:
    """Return what a function of a module in this folder returns, as JSON, in a process of its own with a fake device.

    Fails the test with what the process wrote if it raises.
    """
    process = Forked(call=(_print_json, (function, arguments)), fake_cuda=True)
    assert process.wait(timeout) == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def _print_json(function: Callable[..., Any], arguments: tuple) -> None:
    print(json.dumps(function(*arguments)))


@contextmanager
def forking_python() -> Iterator[Path]:
    """Yield the path of a command `python` that runs forked what it can."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder}/server")
        listener.listen()
        threading.Thread(target=_hand_over, args=[listener], daemon=True).start()
        python = Path(folder) / "python"
        words = [sys.executable, "-I", "-S", str(Path(__file__).with_name("forked_python.py")), f"{folder}/server"]
        python.write_text(f'#!/bin/sh\nexec {shlex.join([*words, sys.executable])} "$@"\n')
        python.chmod(0o755)
        yield python
        listener.shutdown(socket.SHUT_RDWR)


def _hand_over(listener: socket.socket) -> None:
    """Give every connection to the server, until nothing listens any more."""
    with suppress(OSError):
        while True:
            client, _ = listener.accept()
            socket.send_fds(_control(), [b"."], [client.fileno()])
            client.close()

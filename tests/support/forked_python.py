"""The command `python` of a page of the documentation: asks the server of `forks` for what was typed.

Written for `python -I -S`, which starts in 20 ms. What is neither `-m` nor `-c` is for a fresh interpreter, and so is
`launch`, which is about processes.
"""

import os
import signal
import socket
import sys
from multiprocessing.connection import Connection
from pathlib import Path


def main(server: str, real: str, words: list[str]) -> int:
    if words[0] not in ("-m", "-c") or words[1] in ("launch", "pytest"):
        os.execv(real, [real, *words])
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(server)
        connection = Connection(client.detach())
    streams = {name: f"/proc/{os.getpid()}/fd/{at}" for at, name in enumerate(("stdin", "stdout", "stderr"))}
    connection.send({"words": words, "cwd": str(Path.cwd()), "environment": dict(os.environ), **streams})
    child = connection.recv()
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, lambda number, _: os.kill(child, number))
    return connection.recv()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3], sys.argv[3:]))

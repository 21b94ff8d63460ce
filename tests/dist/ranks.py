"""Starts real processes: ranks of a function over gloo, and whole runs, forked (`forks`) or as a user starts them."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path

from forks import FAST, Forked

PATIENCE_S = 280.0  # for what takes seconds where nothing is wrong


def on_ranks(size: int, function: Callable[..., None], *arguments: object) -> None:
    """Call `function(world, *arguments)` on `size` ranks over gloo; an exception on any of them fails the caller."""
    ranks = [Forked(call=(_enter, (own, function, arguments))) for own in environments(size)]
    codes = end(ranks)
    assert codes == [0] * size, "\n".join(rank.stderr[-4000:] for rank in ranks if rank.returncode != 0)


def _enter(own: dict[str, str], function: Callable[..., None], arguments: tuple) -> None:
    from pretrain.distributed.world import joined

    os.environ |= own
    with joined() as world:
        function(world, *arguments)
    os._exit(0)  # as a run does: gloo's threads may abort a process whose interpreter is taken down


def environments(size: int) -> list[dict[str, str]]:
    """Return the variables that say to each rank which it is, and where the first one listens."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(size)}
    return [meeting | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]


def end(ranks: list[Forked], seconds: float = PATIENCE_S) -> list[int]:
    """Return the exit codes of ranks; those that go on for 30 s after one that failed, or for too long, are killed."""
    deadline, running = time.monotonic() + seconds, {rank.connection: rank for rank in ranks}
    while running:
        ended = wait(running, max(0.0, deadline - time.monotonic()))
        for connection in ended or running:
            if not ended:
                running[connection].kill()
            if running[connection].wait() != 0:
                deadline = min(deadline, time.monotonic() + 30)
        running = {connection: rank for connection, rank in running.items() if connection not in ended}
    return [rank.wait() for rank in ranks]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(reached: Callable[[], object], *running: Forked | subprocess.Popen, seconds: float = 120) -> None:
    """Wait until something is true of a run while its processes live."""
    deadline = time.monotonic() + seconds
    while not reached():
        assert all(process.poll() is None for process in running), "it ended before"
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.0005)


def start(*overrides: str, ranks: int = 1, cwd: Path, program: str = "pretrain") -> list[Forked]:
    """Start the ranks of a run."""
    own = environments(ranks) if ranks > 1 else [{}]
    return [Forked("-m", program, *overrides, cwd=cwd, env=os.environ | more) for more in own]


def run(
    *overrides: str, ranks: int = 1, code: int = 0, cwd: Path, program: str = "pretrain"
) -> subprocess.CompletedProcess[str]:
    """Run to the end, check the exit code of every rank, and return what all of them wrote."""
    started = start(*overrides, ranks=ranks, cwd=cwd, program=program)
    codes = end(started)
    out, err = "".join(rank.stdout for rank in started), "".join(rank.stderr for rank in started)
    assert codes == [code] * ranks, f"{codes}\n{out[-2000:]}\n{err[-4000:]}"
    return subprocess.CompletedProcess(overrides, code, out, err)


def command(*overrides: str, ranks: int = 1, program: str = "pretrain") -> list[str]:
    """Return the command line of a run, of pretraining or, by `program`, of fine-tuning."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    return [sys.executable, *torchrun, "-m", program, *overrides]


def run_fresh(
    *overrides: str, ranks: int = 1, code: int = 0, cwd: Path, program: str = "pretrain"
) -> subprocess.CompletedProcess[str]:
    """Run to the end in fresh interpreters, several ranks under torchrun, and check the exit code."""
    line = command(*overrides, ranks=ranks, program=program)
    done = subprocess.run(line, capture_output=True, text=True, cwd=cwd, env=os.environ | FAST, timeout=PATIENCE_S)
    assert done.returncode == code, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done


RANKS = """
import sys
from pathlib import Path
from launch.ranks import Node, run_ranks
program = [sys.executable, "-m", "pretrain", *sys.argv[4:]]
sys.exit(run_ranks(program, count=int(sys.argv[1]), node=Node(port=int(sys.argv[2])), logs=Path(sys.argv[3])))
"""


def launched(*overrides: str, ranks: int, logs: Path, cwd: Path) -> subprocess.Popen[str]:
    """Start ranks of a run under our own launcher, whose standard error is a pipe."""
    line = [sys.executable, "-c", RANKS, str(ranks), str(free_port()), str(logs), *overrides]
    return subprocess.Popen(line, cwd=cwd, env=os.environ | FAST, stderr=subprocess.PIPE, text=True)


def process_of(rank: int, launcher: subprocess.Popen[str]) -> int:
    """Return the number of the process that is a rank."""
    for number in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split():
        if f"RANK={rank}".encode() in Path(f"/proc/{number}/environ").read_bytes().split(b"\0"):
            return int(number)
    raise LookupError(f"rank {rank} does not run")


def column(run_directory: Path, key: str, split: str = "train") -> dict[int, object]:
    """Return one column of `metrics.jsonl` by step."""
    rows = [json.loads(line) for line in (run_directory / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if row["split"] == split]
    assert len(steps) == len(set(steps)), "no step is logged twice"
    return {row["step"]: row[key] for row in rows if row["split"] == split}


SAMPLED = ["eval.samples=[time,the world]", "eval.sample_tokens=6"]  # of a run, in addition to `tiny`


def tiny(name: str, *more: str) -> list[str]:
    """Return the overrides of a run that takes seconds."""
    return [
        f"run.name={name}",
        "data=text",
        "data.sources.text.paths=[text.txt]",
        "data.sources.text.documents=blank_line",
        "data.prepare.held_out=0.1",
        "data.seq_len=32",
        "tokenizer.vocab_size=300",
        "model=decoder",
        "model.layers=2",
        "model.width=32",
        "model.heads=4",
        "train.steps=24",
        "train.batch_size=8",
        "train.micro_batch_size=8",
        "log.every=1",
        "eval.every=8",
        "checkpoint.every=5",
        "schedule.warmup_steps=3",
        "optim.lr=3e-3",
        *more,
    ]

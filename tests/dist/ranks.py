"""Starts real processes: ranks of a function over gloo, and whole runs under torchrun."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch.multiprocessing as mp

FAST = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}


def on_ranks(size: int, function: Callable[..., None], *arguments: object) -> None:
    """Call `function(world, *arguments)` on `size` ranks over gloo; an exception on any of them fails the caller."""
    mp.spawn(_enter, args=(size, free_port(), function, arguments), nprocs=size)


def _enter(rank: int, size: int, port: int, function: Callable[..., None], arguments: tuple) -> None:
    import torch

    from pretrain.distributed.world import joined

    torch.set_num_threads(1)  # the variable below comes too late where the caller's modules import torch
    os.environ |= FAST | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with joined() as world:
        function(world, *arguments)
    os._exit(0)  # as a run does: gloo's threads may abort a process whose interpreter is taken down


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def command(*overrides: str, ranks: int = 1, program: str = "pretrain") -> list[str]:
    """Return the command line of a run, of pretraining or, by `program`, of fine-tuning."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    return [sys.executable, *torchrun, "-m", program, *overrides]


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


def run(
    *overrides: str, ranks: int = 1, code: int = 0, cwd: Path, program: str = "pretrain"
) -> subprocess.CompletedProcess[str]:
    """Run to the end and check the exit code."""
    line = command(*overrides, ranks=ranks, program=program)
    done = subprocess.run(line, capture_output=True, text=True, cwd=cwd, env=os.environ | FAST, timeout=280)
    assert done.returncode == code, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done


def column(run_directory: Path, key: str, split: str = "train") -> dict[int, object]:
    """Return one column of `metrics.jsonl` by step."""
    rows = [json.loads(line) for line in (run_directory / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if row["split"] == split]
    assert len(steps) == len(set(steps)), "no step is logged twice"
    return {row["step"]: row[key] for row in rows if row["split"] == split}


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

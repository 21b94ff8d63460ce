"""`python -m launch local`: ranks on this machine, for one run or for the runs of a sweep, one after another.

Holds the choice of their number, devices and port; the ranks themselves are in `ranks`, and when they are started
again is decided in `restarts`.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from hydra.core.config_store import ConfigStore

from launch.jobs import REPLAY, Job
from launch.ranks import STOPPED, Node, Outcome, outcome_of
from launch.restarts import Elastic, dead_devices, newest_checkpoint, sizes_that_fit
from launch.table import table_of
from pretrain.compose import Root
from pretrain.distributed.world import device_type
from pretrain.errors import check
from pretrain.train.run_dir.base import CHECKPOINTS, LOG_LEVEL


@dataclass(kw_only=True)
class LocalConfig:
    """How many ranks there are on this machine."""

    nproc: int | None = None  # ranks; null = one for each CUDA device, 1 without any
    port: int | None = None  # TCP port on which rank 0 listens; null = a free one
    max_restarts: int = 0  # restarts in a row without a new checkpoint, after a rank was killed, lost or hung
    min_nproc: int | None = None  # ranks with which a run goes on if others cannot start again; null = nproc

    def __post_init__(self) -> None:
        check(self.nproc is None or self.nproc >= 1, "nproc", self.nproc, "at least 1 rank, or null")
        check(self.max_restarts >= 0, "max_restarts", self.max_restarts, "0 or more")
        if self.min_nproc is not None:
            rule = f"from 1 to the {self.ranks} ranks of the first start, or null"
            check(1 <= self.min_nproc <= self.ranks, "min_nproc", self.min_nproc, rule)
            rule = "says what restarts may do, and there are none; set max_restarts, or leave it out"
            check(self.max_restarts > 0, "min_nproc", self.min_nproc, rule)
        check(self.port is None or 1024 <= self.port < 65536, "port", self.port, "from 1024 to 65535, or null")

    @property
    def ranks(self) -> int:
        """Return how many ranks to start."""
        return self.nproc or torch.cuda.device_count() or 1

    @property
    def fewest(self) -> int:
        """Return with how many ranks a run may go on."""
        return self.min_nproc or self.ranks


def register() -> None:
    """Fill Hydra's ConfigStore with the root."""
    ConfigStore.instance().store(name="launch_local_schema", node=LocalConfig)


LOCAL = Root("launch_local", LocalConfig, register, "python -m launch local|doctor SETTINGS -- PROGRAM SETTINGS")


def run_local(cfg: LocalConfig, jobs: Sequence[Job]) -> int:
    """Run the jobs one after another, each in fresh processes; return the exit code of the first that failed, else 0.

    After a job that was stopped by a signal no other starts. A sweep ends with a table of what its runs reached; of its
    runs the first alone says what it is about to do, the others in their log.txt.
    """
    for job in jobs:
        sizes_that_fit("min_nproc", cfg.fewest, cfg.ranks, partial(_refuse, job))
    if len(jobs) > 1:
        os.environ.setdefault("WANDB_RUN_GROUP", jobs[0].sweep)
    codes = []
    for number, job in enumerate(jobs, start=1):
        if len(jobs) > 1:
            print(f"run {number} of {len(jobs)}: {job.name} ({job.point})", flush=True)
        codes.append(_elastic(cfg, job).run(cfg.ranks))
        if codes[-1] == STOPPED:
            break
        os.environ.setdefault(LOG_LEVEL, "WARNING")
    if len(jobs) > 1:
        print(table_of([job.directory for job in jobs], codes))
        if len(codes) < len(jobs):
            print(f"stopped in run {len(codes)} of {len(jobs)}; the same command goes on from there", file=sys.stderr)
    return next((code for code in codes if code), 0)


def examine_here(cfg: LocalConfig, words: Sequence[str]) -> int:
    """Run the doctor on this machine, on as many ranks as a run would have; return the exit code."""
    return _run_unlogged(cfg, ["launch.doctor", *words])


def replay_here(cfg: LocalConfig, words: Sequence[str]) -> int:
    """Take steps of a run again on the ranks of this machine; return the exit code."""
    return _run_unlogged(cfg, [REPLAY, *words])


def _run_unlogged(cfg: LocalConfig, words: Sequence[str]) -> int:
    """Run a module on all ranks, whose logs go with it; return the exit code."""
    with tempfile.TemporaryDirectory() as logs:
        return _run(cfg, words, range(cfg.ranks), Path(logs)).code


def _refuse(job: Job, ranks: int) -> None:
    """Raise `ConfigError` for what so many ranks cannot run."""
    job.cfg.check_start(ranks=ranks, device_type=device_type())


def _elastic(cfg: LocalConfig, job: Job) -> Elastic:
    """Return how the ranks of a job are started and started again."""

    def start(places: Sequence[int], again: bool) -> Outcome:
        begun = ["++run.fresh=false"] if again and job.cfg.run.fresh else []  # looked at in the first start
        return _run(cfg, [job.program, *job.overrides, *begun], places, job.directory / "ranks")

    return Elastic(
        start=start,
        newest=lambda: newest_checkpoint(job.directory / CHECKPOINTS),
        max_restarts=cfg.max_restarts,
        fewest=cfg.fewest,
        refuse=partial(_refuse, job),
        dead=dead_devices if device_type() == "cuda" else lambda places: [],
    )


def _run(cfg: LocalConfig, words: Sequence[str], places: Sequence[int], logs: Path) -> Outcome:
    """Run a module on a rank in each of the places."""
    node = Node(port=cfg.port or _free_port(), devices=_devices(cfg, places))
    return outcome_of([sys.executable, "-m", *words], count=len(places), node=node, logs=logs)


def _devices(cfg: LocalConfig, places: Sequence[int]) -> str | None:
    """Return the CUDA devices of places as CUDA_VISIBLE_DEVICES names them, None as long as no place is left out."""
    if device_type() != "cuda" or len(places) == cfg.ranks:
        return None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(number) for number in range(cfg.ranks)]
    return ",".join(names[place] for place in places)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]

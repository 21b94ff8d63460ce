"""`python -m launch slurm`: a run, the runs of a sweep, or the preparation of a corpus as jobs of Slurm.

Holds settings and submission; job scripts are written in `script`, clusters described in `cluster`.
"""

from __future__ import annotations

import dataclasses
import math
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

import launch
from launch.jobs import PREPARE, Job
from launch.restarts import sizes_that_fit
from launch.slurm.cluster import check_duration, check_line
from launch.slurm.script import Shape, Task, module_script, run_script
from pretrain.compose import Root
from pretrain.errors import ConfigError, check
from pretrain.files import replace_file
from pretrain.registry import discover


@dataclass(kw_only=True)
class SlurmConfig:
    """How many nodes for how long, and how many restarts."""

    cluster: Any = MISSING  # facts about the cluster: a file of conf/cluster, or your own: cluster=FILE.yaml
    nodes: int = 1  # nodes of a job
    min_nodes: int | None = None  # nodes with which a job begins, or goes on, where Slurm has no more; null = nodes
    nproc: int | None = None  # ranks on a node; null = one for each GPU of the cluster's nodes, 1 without any
    job_name: str | None = None  # of the job in Slurm; null = that of the run
    time: str | None = None  # time limit of a job, as Slurm writes it; null = the cluster's
    lead_s: int = 300  # seconds before the time limit at which ranks save and end; Slurm may be 60 s early
    max_restarts: int = 100  # how often a job may be requeued
    max_idle_starts: int = 3  # consecutive starts without a new checkpoint, after which a job ends for good
    chain: int = 1  # jobs, each started if the one before did not finish the run: for clusters that do not requeue
    parallel: int | None = None  # jobs of a sweep, or parts of a corpus, at the same time; null = all
    parts: int = 1  # pretrain.prepare: jobs that share the input files; a last one merges
    dry_run: bool = False  # print the script and do nothing

    def __post_init__(self) -> None:
        for key in ("nodes", "nproc", "lead_s", "max_idle_starts", "chain", "parallel", "parts"):
            value = getattr(self, key)
            check(value is None or value >= 1, key, value, "at least 1")
        rule = f"from 1 to nodes={self.nodes}, or null"
        check(self.min_nodes is None or 1 <= self.min_nodes <= self.nodes, "min_nodes", self.min_nodes, rule)
        check(self.max_restarts >= 0, "max_restarts", self.max_restarts, "0 or more")
        check_line("job_name", self.job_name)
        check_duration("time", self.time)
        rule = "a chain is for clusters that do not requeue; set cluster.requeue=false, or drop chain"
        check(self.chain == 1 or not self.cluster.requeue, "chain", self.chain, rule)

    @property
    def ranks_per_node(self) -> int:
        """Return how many ranks there are on a node."""
        return self.nproc or self.cluster.gpus_per_node or 1


def _seconds(time: str) -> float:
    """Return a time limit of Slurm in seconds; UNLIMITED, INFINITE and 0 are infinite."""
    if not time[0].isdigit():
        return math.inf
    days, dash, clock = time.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    if not dash and len(parts) < 3:  # minutes come first, else hours
        parts = [0, *parts]
    hours, minutes, seconds = [*parts, 0, 0][:3]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds or math.inf


def register() -> None:
    """Fill Hydra's ConfigStore with the root and with the schema of clusters."""
    ConfigStore.instance().store(name="launch_slurm_schema", node=SlurmConfig)
    discover(launch)


USAGE = "python -m launch slurm|doctor cluster=NAME SETTINGS -- PROGRAM SETTINGS"
SLURM = Root("launch_slurm", SlurmConfig, register, USAGE)


def submit_runs(cfg: SlurmConfig, jobs: Sequence[Job]) -> None:
    """Write the job script of a run, or of the array that a sweep is, and submit it. Raises `ConfigError`."""
    check(cfg.parts == 1, "parts", cfg.parts, f"is for {PREPARE}; drop it")
    sweep, limit = len(jobs) > 1, cfg.time or cfg.cluster.time
    rule = "does not fit a sweep, whose runs end at different times"
    check(not sweep or cfg.chain == 1, "chain", cfg.chain, rule)
    rule = f"must be shorter than the time limit, {limit}, or each start saves and ends at once; lower it or raise time"
    check(limit is None or cfg.lead_s < _seconds(limit), "lead_s", cfg.lead_s, rule)
    device_type = "cuda" if cfg.cluster.gpus_per_node else "cpu"

    def refuse(nodes: int) -> None:
        for job in jobs:
            job.cfg.check_start(ranks=nodes * cfg.ranks_per_node, device_type=device_type)

    node_counts = sizes_that_fit("min_nodes", cfg.min_nodes or cfg.nodes, cfg.nodes, refuse)
    for job in jobs:
        job.cfg.run.check_fresh()
    first = jobs[0]
    folder = (first.directory.with_name(f"{first.sweep}-sweep") if sweep else first.directory) / "slurm"
    shape = Shape(
        name=cfg.job_name or first.sweep,
        nodes=cfg.nodes,
        node_counts=node_counts,
        nproc=cfg.ranks_per_node,
        time=cfg.time,
        lead_s=cfg.lead_s,
        array=_array(cfg, len(jobs)) if sweep else "",
        requeue=cfg.cluster.requeue and cfg.chain == 1,
        max_restarts=cfg.max_restarts,
        max_idle_starts=cfg.max_idle_starts,
    )
    later = ["++run.fresh=false"] if any(job.cfg.run.fresh for job in jobs) else []  # checked above, once
    tasks = [Task(run=job.directory, program=[job.program, *job.overrides, *later]) for job in jobs]
    script = run_script(cfg.cluster, shape, tasks, Path.cwd())
    if cfg.dry_run:
        print(script)
        return
    ids = [_submit(folder, "job.sh", script)]
    for _ in range(1, cfg.chain):
        after = f"--dependency=afternotok:{':'.join(ids)}"  # all of them: one that was removed counts as failed
        ids.append(_submit(folder, "job.sh", script, after, "--kill-on-invalid-dep=yes"))
    print(_summary(cfg, jobs, ids, folder))
    if sweep:
        shape = Shape(name=f"{shape.name}-table", gpus=False, time="10")  # minutes
        words = ["launch.table", *(str(job.directory) for job in jobs)]
        table = module_script(dataclasses.replace(cfg.cluster, cpus_per_node=None), shape, words, Path.cwd())
        number = _submit(folder, "table.sh", table, f"--dependency=afterany:{ids[0]}")
        print(f"  table    {folder}/{number}.out, when all have ended")


def submit_preparation(cfg: SlurmConfig, overrides: Sequence[str], folder: Path) -> None:
    """Submit the parts of a preparation as an array, and the job that merges them behind it. Raises `ConfigError`."""
    check(cfg.nodes == 1, "nodes", cfg.nodes, f"{PREPARE} works on one node; share the files out with parts=N")
    check(cfg.chain == 1, "chain", cfg.chain, f"is for runs; {PREPARE} resumes if it is submitted again")
    name = cfg.job_name or "prepare"
    whole = module_script(cfg.cluster, Shape(name=name, gpus=False, time=cfg.time), [PREPARE, *overrides], Path.cwd())
    shape = Shape(name=f"{name}-parts", gpus=False, time=cfg.time, array=_array(cfg, cfg.parts))
    part = "data.prepare.part="
    words = [PREPARE, *overrides, f"data.prepare.parts={cfg.parts}", part]
    parts = module_script(cfg.cluster, shape, words, Path.cwd(), numbered=part)
    if cfg.dry_run:
        print(whole if cfg.parts == 1 else parts)
        return
    after: list[str] = []
    if cfg.parts > 1:
        number = _submit(folder, "parts.sh", parts)
        print(f"job {number}: {cfg.parts} parts, output in {folder}/{number}_N.out")
        after = [f"--dependency=afterok:{number}", "--kill-on-invalid-dep=yes"]
    number = _submit(folder, "prepare.sh", whole, *after)
    print(f"job {number}: {'merges them' if after else 'the whole'}, output in {folder}/{number}.out")


def examine_nodes(cfg: SlurmConfig, job: Job) -> int:
    """Run the doctor on nodes of the cluster, with the ranks that a job would have there; return the exit code.

    Waits for its job, and prints the page. Raises `ConfigError`.
    """
    folder = job.directory.with_name("doctor")
    shape = Shape(name=cfg.job_name or "doctor", nodes=cfg.nodes, nproc=cfg.ranks_per_node, time=cfg.time)
    task = Task(run=folder, program=["launch.doctor", job.program, *job.overrides])
    script = run_script(cfg.cluster, shape, [task], Path.cwd())
    if cfg.dry_run:
        print(script)
        return 0
    page = _written(folder / "slurm", "job.sh", script).with_name("page.txt")
    page.unlink(missing_ok=True)
    done = _sbatch("--wait", f"--output={page.name}", "job.sh", cwd=page.parent)
    if not page.exists():
        reason = done.stderr.strip() or "its job ended without output"
        raise ConfigError(f"the doctor did not run: {reason}; see the settings of the cluster")
    print(page.read_text(encoding="utf-8"))
    return done.returncode


def _array(cfg: SlurmConfig, size: int) -> str:
    return f"0-{size - 1}" + (f"%{cfg.parallel}" if cfg.parallel else "")


def _submit(folder: Path, name: str, script: str, *options: str) -> str:
    """Write a script into its folder, submit it there, and return the job's number."""
    path = _written(folder, name, script)
    done = _sbatch("--parsable", *options, name, cwd=folder)
    if done.returncode:
        raise ConfigError(f"sbatch refused {path}: {done.stderr.strip()}; see the settings of the cluster")
    return done.stdout.strip().partition(";")[0]


def _written(folder: Path, name: str, script: str) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / name, [script.encode()])
    except OSError as error:
        raise ConfigError(f"{folder}: cannot write the job script ({error}); choose another run.root") from None
    return folder / name


def _sbatch(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            ["sbatch", *words], cwd=cwd, capture_output=True, text=True, encoding="utf-8", errors="replace", check=False
        )
    except FileNotFoundError:
        raise ConfigError("sbatch: not found; submit from a login node of the cluster, or see dry_run=true") from None


def _summary(cfg: SlurmConfig, jobs: Sequence[Job], ids: Sequence[str], folder: Path) -> str:
    """Return what was submitted and where to look."""
    shape = f"{cfg.nodes} nodes x {cfg.ranks_per_node} ranks" if cfg.nodes > 1 else f"{cfg.ranks_per_node} ranks"
    output = f"{ids[0]}_N.out" if len(jobs) > 1 else f"{ids[0]}.out"
    what = f"{len(jobs)} runs of {jobs[0].sweep}" if len(jobs) > 1 else jobs[0].name
    lines = [
        f"job {' -> '.join(ids)}: {what} on {shape}",
        f"  script   {folder}/job.sh",
        f"  output   {folder}/{output}",
        f"  stop     scancel {ids[0]}; to save and go back into the queue: scancel --batch --signal=USR1 {ids[0]}",
    ]
    lines += [f"  run {index:<4} {job.directory}: {job.point}".rstrip(": ") for index, job in enumerate(jobs)]
    return "\n".join(lines)

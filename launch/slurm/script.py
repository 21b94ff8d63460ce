"""Job scripts of Slurm: a head that says what to run and where, and for runs `job.sh`, which is the same for all.

Holds text only; `submit` submits it. Everything that a user typed is quoted, or matched against a pattern.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from launch.slurm.cluster import GPU_OPTIONS, ClusterConfig, ContainerRuntime
from pretrain.settings.paths import expanded

BODY = Path(__file__).with_name("job.sh")


@dataclass(frozen=True, kw_only=True)
class Task:
    """One run of a job script: the whole job, or an element of its array."""

    run: Path  # run directory
    program: list[str]  # module and its arguments


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The resources of a job, and how often it may start."""

    name: str
    nodes: int = 1
    node_counts: Sequence[int] = ()  # those that its ranks can share a step on, the largest first; none: `nodes` alone
    nproc: int = 1  # ranks on a node
    gpus: bool = True  # whether it needs the GPUs of the nodes
    time: str | None = None
    lead_s: int | None = None  # seconds from the first signal to the time limit
    array: str = ""  # such as 0-3%2
    requeue: bool = False  # whether it may put itself into the queue again
    max_restarts: int = 0
    max_idle_starts: int = 1  # starts without a new checkpoint


def run_script(cluster: ClusterConfig, shape: Shape, tasks: Sequence[Task], cwd: Path) -> str:
    """Return the script that runs the ranks of one task, or of an array of tasks."""
    step_options, container = _in_container(cluster, cwd)
    settings = {
        "nproc": str(shape.nproc),
        "requeue": "yes" if shape.requeue else "no",
        "max_restarts": str(shape.max_restarts),
        "max_idle_starts": str(shape.max_idle_starts),
        "python": _python(cluster),
    }
    head = _head(cluster, shape, ["--requeue" if shape.requeue else "--no-requeue", "--open-mode=append"])
    assigned = [f"{name}={quote(value)}" for name, value in settings.items()]
    assigned.append(f"node_counts={_words([str(count) for count in shape.node_counts or [shape.nodes]])}")
    assigned += [f"step_options={_words(step_options)}", f"container={_words(container)}"]
    if shape.array:
        cases = [f"    {number}) {'; '.join(_assigned(task))} ;;" for number, task in enumerate(tasks)]
        group = f"export WANDB_RUN_GROUP=${{WANDB_RUN_GROUP:-{quote(shape.name)}}}"
        assigned += [group, 'case "$SLURM_ARRAY_TASK_ID" in', *cases, "esac"]
    else:
        assigned += _assigned(tasks[0])
    return "\n".join([*head, *_environment(cluster, cwd), *assigned, BODY.read_text(encoding="utf-8")])


def module_script(cluster: ClusterConfig, shape: Shape, words: Sequence[str], cwd: Path, *, numbered: str = "") -> str:
    """Return the script of a job that runs one Python module with its arguments in one process.

    To `numbered`, one of the words, each task of an array adds its number.
    """
    step_options, container = _in_container(cluster, cwd)
    command = ["srun", "--ntasks=1", "--cpu-bind=none", *step_options, *container, _python(cluster), "-m", *words]
    line = " ".join(quote(word) + ('"$SLURM_ARRAY_TASK_ID"' if word == numbered else "") for word in command)
    return "\n".join([*_head(cluster, shape, []), *_environment(cluster, cwd), line, ""])


def _head(cluster: ClusterConfig, shape: Shape, behaviour: Sequence[str]) -> list[str]:
    """Return the lines that sbatch reads."""
    fewest = min(shape.node_counts, default=shape.nodes)
    fixed = fewest == shape.nodes
    asked: Mapping[str, object] = {
        "job-name": shape.name,
        "partition": cluster.partition,
        "account": cluster.account,
        "nodes": shape.nodes if fixed else f"{fewest}-{shape.nodes}",
        "ntasks-per-node": 1 if fixed else None,  # Slurm would count on one for each of the fewest, and give no more
        "gpus-per-node": cluster.gpus_per_node if shape.gpus and not GPU_OPTIONS & cluster.options.keys() else None,
        "cpus-per-task": cluster.cpus_per_node,
        "time": shape.time or cluster.time,
        "signal": f"B:USR1@{shape.lead_s}" if shape.lead_s else None,
        "array": shape.array or None,
        "output": "%A_%a.out" if shape.array else "%j.out",
    }
    given = {name: value for name, value in cluster.options.items() if shape.gpus or name not in GPU_OPTIONS}
    options = [f"--{name}={_quoted(str(value))}" for name, value in asked.items() if value]
    options += [f"--{name}={_quoted(value)}" if value else f"--{name}" for name, value in given.items()]
    note = "# Written by `python -m launch`. To submit it again: cd to its folder, sbatch and its name."
    return ["#!/bin/bash -l", note, *(f"#SBATCH {option}" for option in [*options, *behaviour]), ""]


def _quoted(value: str) -> str:
    """Return a value as sbatch reads it, which knows words, comments and quotes, but expands nothing."""
    if re.fullmatch(r"[^\s\"'\\#]+", value):
        return value
    return '"' + re.sub(r'(["\\])', r"\\\1", value) + '"'


def _environment(cluster: ClusterConfig, cwd: Path) -> list[str]:
    """Return the lines that make a node ready to run Headwater."""
    lines = [
        f"cd {quote(str(cwd))} || exit 2",
        *(f"module load {quote(each)} || exit 2" for each in cluster.modules),
    ]
    if cluster.venv:
        activate = f"{expanded(cluster.venv, 'cluster.venv')}/bin/activate"
        lines.append(f"source {quote(activate)} || exit 2")
    lines += [f"export {name}={quote(value)}" for name, value in cluster.env.items()]
    return [*lines, "set -u", ""]


def _assigned(task: Task) -> list[str]:
    return [f"run={quote(str(task.run))}", f"program={_words(task.program)}"]


def _python(cluster: ClusterConfig) -> str:
    """Return the Python of nodes: that of the environment or image, else the one that submits."""
    return "python3" if cluster.container else "python" if cluster.venv else sys.executable


def _in_container(cluster: ClusterConfig, cwd: Path) -> tuple[list[str], list[str]]:
    """Return options of srun, and the words before a command that have it run in the cluster's image if there is one.

    A step does not inherit the cores of its job (Slurm 22.05 and later): it asks for them, too.
    """
    cores = [f"--cpus-per-task={cluster.cpus_per_node}"] if cluster.cpus_per_node else []
    if cluster.container is None:
        return cores, []
    image = expanded(cluster.container, "cluster.container")  # or docker://NAME
    mounts = [expanded(mount, "cluster.mounts") for mount in cluster.mounts]
    if cluster.container_runtime is ContainerRuntime.pyxis:
        mounted = [f"--container-mounts={','.join(mounts)}"] if mounts else []
        return [*cores, f"--container-image={image}", *mounted, f"--container-workdir={cwd}"], []
    gpus = ["--nv"] if cluster.gpus_per_node else []
    return cores, ["apptainer", "exec", *gpus, *(f"--bind={mount}" for mount in mounts), image]


def _words(words: Sequence[str]) -> str:
    """Return an array of the shell."""
    return f"({' '.join(map(quote, words))})"

"""Job scripts of Slurm: a head that says what to run and where, and for runs `job.sh`, which is the same for all.

Holds text only; `submit` submits it. Everything that a user typed is matched against a pattern or quoted.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.slurm.cluster import ClusterConfig, ContainerRuntime

BODY = Path(__file__).with_name("job.sh")


@dataclass(frozen=True, kw_only=True)
class Task:
    """One run of a job script: the whole job, or an element of its array."""

    run: Path  # run directory
    program: list[str]  # module and its arguments


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The resources of a job."""

    name: str
    nodes: int = 1
    nproc: int = 1  # ranks on a node
    gpus: bool = True  # whether it needs the GPUs of the nodes
    time: str | None = None
    lead_s: int | None = None  # seconds from the first signal to the time limit
    array: str = ""  # such as 0-3%2


@dataclass(frozen=True, kw_only=True)
class Restarts:
    """Whether a job may put itself into the queue again."""

    requeue: bool
    max_restarts: int
    max_idle_starts: int  # starts without a new checkpoint


def run_script(cluster: ClusterConfig, shape: Shape, restarts: Restarts, tasks: Sequence[Task], cwd: Path) -> str:
    """Return the script that runs the ranks of one task, or of an array of tasks."""
    settings = {
        "nproc": str(shape.nproc),
        "requeue": "yes" if restarts.requeue else "no",
        "max_restarts": str(restarts.max_restarts),
        "max_idle_starts": str(restarts.max_idle_starts),
        "python": _python(cluster),
        "step_options": _words([*_cores(cluster), *_pyxis(cluster, cwd)]),
        "container": _words(_apptainer(cluster)),
    }
    assigned = [f"{name}={value if value.startswith('(') else _quoted(value)}" for name, value in settings.items()]
    what = (
        [f'export WANDB_RUN_GROUP="${{WANDB_RUN_GROUP:-{shape.name}}}"', *_array(tasks)]
        if shape.array
        else _assigned(tasks[0])
    )
    requeue = "--requeue" if restarts.requeue else "--no-requeue"
    head = _head(cluster, shape, [requeue, "--open-mode=append"])
    return "\n".join([*head, *_environment(cluster, cwd), *assigned, *what, BODY.read_text()])


def module_script(cluster: ClusterConfig, shape: Shape, words: Sequence[str], cwd: Path, *, numbered: str = "") -> str:
    """Return the script of a job that runs one Python module with its arguments in one process.

    To `numbered`, one of the words, each task of an array adds its number.
    """
    step = ["srun", "--ntasks=1", "--cpu-bind=none", *_cores(cluster), *_pyxis(cluster, cwd)]
    command = [*step, *_apptainer(cluster), _python(cluster), "-m", *words]
    line = " ".join(_quoted(word) + ('"$SLURM_ARRAY_TASK_ID"' if word == numbered else "") for word in command)
    return "\n".join([*_head(cluster, shape, []), *_environment(cluster, cwd), line, ""])


def _head(cluster: ClusterConfig, shape: Shape, behaviour: Sequence[str]) -> list[str]:
    """Return the lines that sbatch reads."""
    asked: Mapping[str, object] = {
        "job-name": shape.name,
        "partition": cluster.partition,
        "account": cluster.account,
        "nodes": shape.nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": cluster.gpus_per_node if shape.gpus and "gres" not in cluster.options else None,
        "cpus-per-task": cluster.cpus_per_node,
        "time": shape.time or cluster.time,
        "signal": f"B:USR1@{shape.lead_s}" if shape.lead_s else None,
        "array": shape.array or None,
        "output": "%A_%a.out" if shape.array else "%j.out",
    }
    options = [f"--{name}={value}" for name, value in asked.items() if value]
    options += [f"--{name}={value}" if value else f"--{name}" for name, value in cluster.options.items()]
    note = "# Written by `python -m launch`. To submit it again: cd to its folder, sbatch and its name."
    return ["#!/bin/bash -l", note, *(f"#SBATCH {option}" for option in [*options, *behaviour]), ""]


def _environment(cluster: ClusterConfig, cwd: Path) -> list[str]:
    """Return the lines that make a node ready to run Headwater."""
    lines = [
        f"cd {_quoted(str(cwd))} || exit 2",
        *(f"module load {_quoted(each)} || exit 2" for each in cluster.modules),
    ]
    lines += [f"source {_quoted(f'{_from_home(cluster.venv)}/bin/activate')} || exit 2"] if cluster.venv else []
    lines += [f"export {name}={_quoted(value)}" for name, value in cluster.env.items()]
    return [*lines, "set -u", ""]


def _assigned(task: Task) -> list[str]:
    return [f"run={_quoted(str(task.run))}", f"program={_words(task.program)}"]


def _array(tasks: Sequence[Task]) -> list[str]:
    cases = [f"    {number}) {'; '.join(_assigned(task))} ;;" for number, task in enumerate(tasks)]
    return ['case "$SLURM_ARRAY_TASK_ID" in', *cases, "esac"]


def _python(cluster: ClusterConfig) -> str:
    """Return the Python of nodes: that of the environment or image, else the one that submits."""
    return "python3" if cluster.container else "python" if cluster.venv else sys.executable


def _apptainer(cluster: ClusterConfig) -> list[str]:
    if cluster.container is None or cluster.container_runtime is not ContainerRuntime.apptainer:
        return []
    gpus = ["--nv"] if cluster.gpus_per_node else []
    mounts = [f"--bind={_from_home(mount)}" for mount in cluster.mounts]
    return ["apptainer", "exec", *gpus, *mounts, _from_home(cluster.container)]


def _pyxis(cluster: ClusterConfig, cwd: Path) -> list[str]:
    if cluster.container is None or cluster.container_runtime is not ContainerRuntime.pyxis:
        return []
    mounts = [f"--container-mounts={','.join(map(_from_home, cluster.mounts))}"] if cluster.mounts else []
    return [f"--container-image={_from_home(cluster.container)}", *mounts, f"--container-workdir={cwd}"]


def _cores(cluster: ClusterConfig) -> list[str]:
    """Return the cores that a step asks for: it does not inherit those of its job (Slurm 22.05 and later)."""
    return [f"--cpus-per-task={cluster.cpus_per_node}"] if cluster.cpus_per_node else []


def _from_home(path: str) -> str:
    """Return a path with its `~` resolved, which no shell does in quotes; an image may be docker://NAME, no path."""
    return f"{Path.home()}{path[1:]}" if path.startswith("~/") else path


def _words(words: Sequence[str]) -> str:
    """Return an array of the shell."""
    return f"({' '.join(map(_quoted, words))})"


_quoted = shlex.quote

"""A cluster as `conf/cluster/*.yaml` describe it: which options its Slurm needs and how its nodes get their software.

Holds values and their checks. Every value ends in a shell script, where it is quoted, for the shell or for sbatch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum

from pretrain.errors import check
from pretrain.errors.redaction import looks_secret
from pretrain.registry import register

WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@:+/,=-]*")
WORD_RULE = "letters, digits and . _ @ : + / , = -, beginning with a letter or digit"
OPTION = re.compile(r"[a-z][a-z-]*")
LINE_RULE = "must be one line of printable characters"
DURATION = re.compile(r"\d+(-\d+)?(:\d+){0,2}|unlimited|infinite", re.IGNORECASE)
DURATION_RULE = "write it as Slurm does: MINUTES, HH:MM:SS, DAYS-HH:MM:SS or UNLIMITED"
GPU_OPTIONS = {"gpus", "gpus-per-node", "gres"}  # with one of them the launcher does not ask for GPUs by itself
OURS = {"array", "chdir", "dependency", "error", "job-name", "nodes", "ntasks", "ntasks-per-node", "open-mode"} | {
    "output", "requeue", "no-requeue", "signal", "time", "parsable", "wrap", "export", "cpus-per-task"
}  # fmt: skip
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class ContainerRuntime(StrEnum):
    """What runs a container image on the nodes."""

    apptainer = "apptainer"  # `apptainer exec`; Singularity has the same command line
    pyxis = "pyxis"  # Slurm's plugin: srun --container-image


@register("cluster", "slurm")
@dataclass(kw_only=True)
class ClusterConfig:
    """What is true of every job on a cluster."""

    partition: str | None = None  # Slurm's partition; null = the cluster's default
    account: str | None = None  # charged for the job; null = the user's default
    gpus_per_node: int = 0  # GPUs, and ranks unless nproc says otherwise; 0 = nodes without GPUs
    cpus_per_node: int | None = None  # cores of a node that a job asks for; null = the partition's default
    time: int | str | None = None  # longest time of a job, as Slurm writes it ("D-HH:MM:SS"); null = the partition's
    options: dict[str, str] = field(default_factory=dict)  # other options of sbatch, such as qos: high; "" = a flag
    requeue: bool = True  # whether a job may put itself back into the queue; if not, use chain=N
    modules: list[str] = field(default_factory=list)  # environment modules to load first
    venv: str | None = None  # virtual environment that nodes see; null = the Python that submits
    container: str | None = None  # image that has Headwater installed; null = none
    container_runtime: ContainerRuntime = ContainerRuntime.apptainer  # what starts the image there
    mounts: list[str] = field(default_factory=list)  # HOST or HOST:INSIDE that it sees; pyxis: also where you submit
    env: dict[str, str] = field(default_factory=dict)  # environment of ranks, such as NCCL_SOCKET_IFNAME; no secrets

    def __post_init__(self) -> None:
        quoted = "put it in quotes: YAML takes 12:00:00 without them for a number; on a command line, say time=..."
        check(not isinstance(self.time, int), "cluster.time", self.time, quoted)
        for key in ("partition", "account"):
            check_line(f"cluster.{key}", getattr(self, key))
        check_duration("cluster.time", self.time)
        check(self.gpus_per_node >= 0, "cluster.gpus_per_node", self.gpus_per_node, "0 or more GPUs")
        cpus = self.cpus_per_node
        check(cpus is None or cpus >= 1, "cluster.cpus_per_node", cpus, "at least 1 core, or null")
        for name, value in self.options.items():
            key = f"cluster.options.{name}"
            check(OPTION.fullmatch(name) is not None, key, value, "no long option of sbatch; write it without dashes")
            check(name not in OURS, key, value, "is for the launcher to set; it has a setting of its own")
            check_line(key, value or None)
        for module in self.modules:
            check(WORD.fullmatch(module) is not None, "cluster.modules", repr(module), WORD_RULE)
        both = "a container brings its own Python; drop one of the two"
        check(self.venv is None or self.container is None, "cluster.venv", self.venv, both)
        check(not self.mounts or bool(self.container), "cluster.mounts", self.mounts, "needs cluster.container")
        for name, value in self.env.items():
            key = f"cluster.env.{name}"
            check(VARIABLE.fullmatch(name) is not None, key, value, "letters, digits and _ make a variable's name")
            rule = "looks like a credential; export it where you submit: jobs inherit that environment"
            check(not looks_secret(value, name), key, "<redacted>", rule)
        texts = [("venv", self.venv or ""), ("container", self.container or "")]
        texts += [("mounts", mount) for mount in self.mounts]
        for key, text in [*texts, *((f"env.{name}", value) for name, value in self.env.items())]:
            check_line(f"cluster.{key}", text or None)


def check_line(key: str, value: str | None) -> None:
    """Raise a `ConfigError` for a text that has more than one line, or none; None is for Slurm to choose."""
    check(value is None or (value.strip() != "" and value.isprintable()), key, repr(value), LINE_RULE)


def check_duration(key: str, value: str | int | None) -> None:
    """Raise a `ConfigError` for what is no time of Slurm's; None is for Slurm to choose."""
    check(value is None or DURATION.fullmatch(str(value)) is not None, key, repr(value), DURATION_RULE)

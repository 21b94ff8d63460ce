"""What is launched: a program, its settings, and one job for each point of a sweep.

Holds the reading and checking of the words after `--`; `local` and `slurm` start the jobs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.config import FINETUNE
from launch.sweep import expand, point_text, run_name
from pretrain.compose import PRETRAIN, compose
from pretrain.data.prepare.cache_key import texts_of
from pretrain.errors import ConfigError
from pretrain.errors.nearest import nearest
from pretrain.errors.redaction import REDACTED, redacted

PREPARE = "pretrain.prepare"  # a program that has no ranks
REPLAY = "pretrain.replay"  # a program of ranks whose words are no settings
PROGRAMS = {root.name: root for root in (PRETRAIN, FINETUNE)}  # the modules that ranks may run


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run, checked as far as it can be without its ranks."""

    program: str  # a module
    overrides: list[str]  # its command line
    cfg: Any  # what that composes to
    sweep: str  # name of the whole sweep; of a job that is alone, that of the run
    point: str = ""  # the settings in which it differs from other jobs of the sweep, such as "optim.lr=1e-4 seed=0"

    @property
    def name(self) -> str:
        """Return the name of the run."""
        return self.cfg.run.name

    @property
    def directory(self) -> Path:
        """Return the run directory."""
        return self.cfg.run.directory


def jobs_of(words: Sequence[str]) -> list[Job]:
    """Return the jobs that the words after `--` name: one, or with values such as `seed=1,2` one for each combination.

    The runs of a sweep are named NAME-KEY-VALUE. Raises `ConfigError` for an unknown program and for settings that any
    of the jobs refuses; exits after `--help` and the like.
    """
    program, *overrides = words or [""]
    if program not in PROGRAMS:
        known = ", ".join(PROGRAMS)
        raise ConfigError(f"{program or '--'}: name a program after --{nearest(program, PROGRAMS)} (one of: {known})")
    jobs: list[Job] = []
    first: dict[Path, Job] = {}  # in each run directory
    for point in expand(overrides):
        settings = point.overrides
        cfg = compose(settings, PROGRAMS[program], quiet=bool(jobs))
        sweep = cfg.run.name
        if point.values:
            name = sweep if "run.name" in point.values else run_name(sweep, point.values)
            settings = [*settings, f"++run.name={name}"]
            cfg = compose(settings, PROGRAMS[program], quiet=True)
        job = Job(program=program, overrides=settings, cfg=cfg, sweep=sweep, point=point_text(point.values))
        if (other := first.setdefault(job.directory, job)) is not job:
            raise ConfigError(
                f"run.name={job.name}: both {other.point} and {job.point} would run in {job.directory}; "
                "sweep over run.name, too, or choose values that differ in letters and digits"
            )
        jobs.append(job)
    return jobs


def without_secrets(words: Sequence[str]) -> Sequence[str]:
    """Return the words of a program. Raises `ConfigError` for a secret, which a job script would show."""
    for word in words:
        key, _, value = word.partition("=")
        if redacted(value, key) != value:
            rule = "a secret, which job scripts and lists of processes would show; export it under a name"
            raise ConfigError(f"{key}={REDACTED}: {rule}, and type '{key}=${{oc.env:NAME}}'")
    return words


def corpora_root(overrides: Sequence[str]) -> Path:
    """Return the directory in which a command line of `pretrain.prepare` writes corpora. Raises `ConfigError`."""
    cfg = compose(overrides)
    texts_of(cfg.data.sources)
    cfg.check_tokenizer()
    return cfg.data.prepare.directory

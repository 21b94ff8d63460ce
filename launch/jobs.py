"""What is launched: a program, its settings, and each of the jobs that a sweep over settings makes of them.

Holds the reading and checking of the words behind `--`; starting jobs is for `local` and `slurm`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.config import FINETUNE
from launch.sweep import expand, label, named
from pretrain.compose import PRETRAIN, Root, compose_command_line, with_overrides
from pretrain.data.prepare.cache_key import texts_of
from pretrain.errors import ConfigError
from pretrain.registry import nearest, typed

PREPARE = "pretrain.prepare"  # a program that has no ranks
PROGRAMS = {root.name: root for root in (PRETRAIN, FINETUNE)}  # the modules that ranks may run


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run, checked as far as it can be without its ranks."""

    program: str  # a module
    overrides: list[str]  # its command line
    cfg: Any  # what that composes to
    family: str  # name of the run, without what a sweep adds to it
    swept: str = ""  # what tells it from the other jobs of its sweep, such as "optim.lr=1e-4 seed=0"

    @property
    def name(self) -> str:
        """Return the name of the run."""
        return self.cfg.run.name

    @property
    def directory(self) -> Path:
        """Return the run directory."""
        return self.cfg.run.directory


def jobs_of(words: Sequence[str]) -> list[Job]:
    """Return the jobs that the words behind `--` name: one, or with values such as `seed=1,2` one for each combination.

    The runs of a sweep are named NAME-KEY-VALUE. Raises `ConfigError` for a program that there is not and for settings
    that any of the jobs refuses; exits after `--help` and the like.
    """
    program, *overrides = words or [""]
    if program not in PROGRAMS:
        known = ", ".join(PROGRAMS)
        raise ConfigError(f"{program or '--'}: name a program behind --{nearest(program, PROGRAMS)} (one of: {known})")
    root = PROGRAMS[program]
    points = expand(overrides)
    if len(points) == 1 and not points[0].swept:
        cfg = _composed(root, overrides)
        return [Job(program=program, overrides=overrides, cfg=cfg, family=cfg.run.name)]
    jobs = []
    for point in points:
        family = _composed(root, point.overrides).run.name
        name = family if "run.name" in point.swept else named(family, point.swept)
        settings = with_overrides(point.overrides, f"++run.name={name}")
        cfg = _composed(root, settings)
        jobs.append(Job(program=program, overrides=settings, cfg=cfg, family=family, swept=label(point.swept)))
    _check_apart(jobs)
    return jobs


def prepared_by(overrides: Sequence[str]) -> Path:
    """Return the directory of corpora that a command line of `pretrain.prepare` fills. Raises `ConfigError`."""
    cfg = _composed(PRETRAIN, overrides)
    texts_of(cfg.data.sources)
    cfg.check_tokenizer()
    return Path(cfg.data.prepare.root).expanduser()


def _composed(root: Root, words: Sequence[str]) -> Any:
    """Return the typed configuration of a command line of the program."""
    sys.argv = [root.name, *words]
    composed = compose_command_line(root)
    if composed is None:  # after --help, --cfg and the like
        sys.exit(0)
    return typed(composed)


def _check_apart(jobs: Sequence[Job]) -> None:
    """Refuse two jobs of one run directory."""
    first: dict[Path, Job] = {}
    for job in jobs:
        other = first.setdefault(job.directory, job)
        if other is not job:
            raise ConfigError(
                f"run.name={job.name}: both {other.swept} and {job.swept} would run in {job.directory}; "
                "sweep over run.name, too, or choose values that differ in letters and digits"
            )

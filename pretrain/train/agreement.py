"""What all ranks must have in common: settings, versions, code, the run directory, and later the data.

Holds the comparisons, before anything is paid for; what is compared of the data is said by the composition roots.
"""

from __future__ import annotations

import hashlib
import json
import socket
import time
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pretrain.distributed.world import World
from pretrain.errors import ConfigError
from pretrain.errors.redaction import redacted
from pretrain.files import check_writable
from pretrain.registry import choices_in, flattened, plain
from pretrain.train.run_dir.base import CHECKPOINTS
from pretrain.train.run_dir.lock import LOCK_FILE
from pretrain.train.summary import versions

Facts = dict[str, Any]
"""What is compared: a setting, or a part of the code or of the data -> its plain value."""

VISIBLE_S = 60.0  # that a network file system may take to show one node what another has written: NFS's default
POLL_S = 0.2
SHOWN_RANKS = 8  # of those that differ; the others are counted
SHOWN_FACTS = 6  # of one rank


def check_started_alike(cfg: Any, packages: Sequence[str], world: World) -> None:
    """Refuse ranks that were started with other settings, libraries or code than the others, or elsewhere.

    `cfg` is a whole typed configuration, `packages` are those that train. A collective; all ranks raise the same
    `ConfigError`.
    """
    check_agreement({**settings_of(cfg), **software(packages)}, world)
    check_directory(cfg.run.directory, world)
    check_places_to_save(cfg.run.directory, world)


def check_agreement(facts: Facts, world: World) -> None:
    """Refuse ranks whose facts are not those of most ranks, by rank, host and fact.

    Facts travel only if hashes differ, and then only those of the ranks that are named. A collective; all ranks raise
    the same `ConfigError`.
    """
    digests = world.gather(hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest())
    [(usual, _), *_] = Counter(digests).most_common()  # of equally many that of rank 0
    others = [rank for rank, digest in enumerate(digests) if digest != usual]
    if not others:
        return
    reference, named = digests.index(usual), others[:SHOWN_RANKS]
    answers = world.gather([socket.gethostname(), facts] if world.rank in {reference, *named} else None)
    expected = answers[reference][1]
    lines = [
        f"rank {rank} on host {answers[rank][0]}: {_difference(answers[rank][1], expected, reference)}"
        for rank in named
    ]
    rule = "give all ranks the same command, environment, code and files"
    head = f"{len(others)} of {world.size} ranks differ from the others; {rule}:"
    raise ConfigError("\n  ".join([head, *_shortened(lines, len(others))]))


def check_directory(path: Path, world: World) -> None:
    """Refuse ranks that do not see the run directory which rank 0 holds: one on a disk of its node, say.

    They know it by what rank 0 wrote into the lock. A collective; all ranks raise the same `ConfigError`.
    """
    lock = path / LOCK_FILE
    [held, *_] = world.gather(lock.read_text(encoding="utf-8") if world.is_first else None)
    seen = _shows(lock, held)
    strangers = world.gather(None if seen else [socket.gethostname(), str(path.absolute())])
    lines = [f"rank {rank} on host {answer[0]}: {answer[1]}" for rank, answer in enumerate(strangers) if answer]
    if lines:
        rule = "put it on a file system that all nodes share, and give its absolute path"
        head = f"run.root: some ranks do not see the run directory that rank 0 holds ({held.strip()}); {rule}:"
        raise ConfigError("\n  ".join([head, *_shortened(lines[:SHOWN_RANKS], len(lines))]))


def settings_of(cfg: Any) -> Facts:
    """Return the values of a typed configuration and the choices that typed them, by their keys."""
    choices = {key: name for key, _, name in choices_in(cfg)}
    return {**flattened(plain(cfg)), **choices}


def software(packages: Sequence[str]) -> Facts:
    """Return the versions of the libraries, and a hash of every source file of our packages."""
    hashes: Facts = {f"the version of {name}": number for name, number in versions().items()}
    for package in packages:
        spec = find_spec(package)
        assert spec and spec.submodule_search_locations, package
        [root] = map(Path, spec.submodule_search_locations)
        for path in sorted(root.rglob("*.py")):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            hashes[f"the code of {path.relative_to(root.parent)}"] = digest[:12]
    return hashes


def check_places_to_save(path: Path, world: World) -> None:
    """Refuse ranks that cannot write into the run directory, where each saves its part: mounted read-only there, say.

    A collective; all ranks raise the same `ConfigError`.
    """
    problem = None
    try:
        check_writable(path, folders=[CHECKPOINTS])
    except OSError as error:
        problem = f"on host {socket.gethostname()}: {error}"
    found = world.gather(problem)
    lines = [f"rank {rank} {answer}" for rank, answer in enumerate(found) if answer]
    if lines:
        head = (
            "run.root: some ranks cannot save there; give all of them the right to write, or choose another run.root:"
        )
        raise ConfigError("\n  ".join([head, *_shortened(lines[:SHOWN_RANKS], len(lines))]))


def _difference(facts: Facts, expected: Facts, reference: int) -> str:
    """Return which facts are not as expected, in words, without secrets."""

    def shown(side: Facts, key: str) -> object:
        return redacted(side[key], key) if key in side else "absent"

    differing = [key for key in expected | facts if facts.get(key) != expected.get(key)]
    said = [
        f"{key} is {shown(facts, key)}, and {shown(expected, key)} on rank {reference}"
        for key in differing[:SHOWN_FACTS]
    ]
    return "; ".join(_shortened(said, len(differing)))


def _shortened(shown: list[str], of: int) -> list[str]:
    return [*shown, f"and {of - len(shown)} more"] if of > len(shown) else shown


def _shows(file: Path, text: str) -> bool:
    """Whether a file has a text, or comes to have it while a network file system may still hide it."""
    deadline = time.monotonic() + VISIBLE_S
    while True:
        try:
            if file.read_text(encoding="utf-8") == text:
                return True
        except OSError:  # not there yet, or never
            pass
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_S)

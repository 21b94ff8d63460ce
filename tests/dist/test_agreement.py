"""Ranks that were not started alike: named and refused by all of them, before anything is paid for."""

import os
import shutil
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from forks import Forked
from ranks import end, environments, on_ranks, tiny

from pretrain.errors import ConfigError
from pretrain.train import agreement
from pretrain.train.agreement import check_agreement, check_directory
from pretrain.train.run_dir.base import RunConfig, RunDirectory

ROOT = Path(__file__).parents[2]


def refusal(world, call, *arguments) -> str:
    """Return what a call is refused with, which must be the same on all ranks."""
    with pytest.raises(ConfigError) as refused:
        call(*arguments)
    [told, *others] = world.gather(str(refused.value))
    assert others == [told] * (world.size - 1)
    return told


def compare(world):
    alike = {"seed": 0, "optim.lr": 1e-3, "names": ["a", "b"]}
    check_agreement(dict(reversed(alike.items())) if world.rank == 1 else alike, world)
    assert all(world.gather("still in step"))

    first, *rest = refusal(world, check_agreement, alike | {"seed": int(world.rank == 0)}, world).splitlines()
    assert first.startswith("1 of 3 ranks differ from the others")
    [line] = rest
    assert "rank 0 on host" in line and line.endswith("seed is 1, and 0 on rank 1"), "most ranks are right"

    own = {"optim.lr": 2e-3, "warmup": 3} if world.rank == 2 else {"tracker.api_key": f"hunter{world.rank}"}
    told = refusal(world, check_agreement, alike | own, world)
    assert "2 of 3 ranks differ" in told
    assert "rank 1 on host" in told and "tracker.api_key is <redacted>, and <redacted> on rank 0" in told
    assert "tracker.api_key is absent, and <redacted> on rank 0" in told
    assert "optim.lr is 0.002, and 0.001 on rank 0" in told and "warmup is 3, and absent on rank 0" in told
    assert "hunter" not in told


def test_the_ranks_that_differ_are_named_with_what_differs_and_no_secrets():
    on_ranks(3, compare)


def compare_many(world):
    agreement.SHOWN_RANKS = 1
    told = refusal(world, check_agreement, {f"key{n}": n * (world.rank % 2) for n in range(9)}, world)
    assert told.splitlines()[-1].strip() == "and 1 more"
    assert "rank 1 on host" in told and "rank 3 on host" not in told
    assert told.count(" and 0 on rank 0") == agreement.SHOWN_FACTS and "and 2 more" in told


def test_many_differences_are_counted():
    on_ranks(4, compare_many)


def share(world, folder):
    agreement.VISIBLE_S = 0.5
    path = Path("runs") / "shared"
    os.chdir(folder)
    held = world.is_first and RunDirectory.claim(RunConfig(name="shared"))
    world.barrier()
    check_directory(path, world)

    if world.rank == 1:  # its node has a disk of its own, on which an earlier run left a lock
        (folder / "own" / path).mkdir(parents=True)
        (folder / "own" / path / "lock").write_text("pid 1 on host a since 2026-01-01 00:00:00\n")
        os.chdir(folder / "own")
    told = refusal(world, check_directory, path, world)
    assert "run.root: " in told and f"pid {os.getppid()}" not in told
    assert f"{folder}/own/runs/shared" in told and "rank 1 on host" in told
    assert "rank 2" not in told and "all nodes share" in told

    agreement.VISIBLE_S = 60
    if world.rank == 1:  # its file system is late
        os.chdir(folder)
        shutil.copytree("runs/shared", "late/runs/shared", ignore=shutil.ignore_patterns("lock"))
        os.chdir("late")
        threading.Timer(0.5, shutil.copy, ["../runs/shared/lock", "runs/shared"]).start()
    check_directory(path, world)
    assert held is False or held.path == path


def test_ranks_without_the_directory_of_the_first_are_named_after_a_while(tmp_path):
    on_ranks(3, share, tmp_path)


@dataclass
class Start:
    """How one rank of a run is started."""

    overrides: list[str] = field(default_factory=list)
    path: list[Path] = field(default_factory=list)  # ahead of all others that it imports from


def start(starts: list[Start], name: str, cwd: Path) -> list[Forked]:
    """Run `python -m pretrain` on ranks that may differ, to their end."""
    ranks = []
    for own, how in zip(environments(len(starts)), starts, strict=True):
        paths = os.pathsep.join(map(str, [*how.path, os.environ.get("PYTHONPATH", ROOT)]))
        line = ["-m", "pretrain", *tiny(name, "train.micro_batch_size=2", *how.overrides)]
        ranks.append(Forked(*line, cwd=cwd, env=os.environ | own | {"PYTHONPATH": paths}))
    end(ranks)
    return ranks


def test_a_run_whose_ranks_have_other_settings_code_or_libraries_is_refused_by_all(place, tmp_path):
    copy = tmp_path / "copy"
    for package in ("pretrain", "finetune", "conf"):
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "pretrain" / "train" / "loop.py").write_text(
        (copy / "pretrain" / "train" / "loop.py").read_text() + "# one comment more\n"
    )
    library = tmp_path / "libraries" / "tokenizers-9.9.9.dist-info"
    library.mkdir(parents=True)
    (library / "METADATA").write_text("Metadata-Version: 2.1\nName: tokenizers\nVersion: 9.9.9\n")
    starts = [Start(), Start(overrides=["seed=7"]), Start(path=[copy]), Start(path=[library.parent])]
    ends = start(starts, "torn", place)
    assert [end.returncode for end in ends] == [2, 2, 2, 2], ends[0].stderr
    one, *others = ["\n".join(end.stderr.splitlines()[-4:]) for end in ends]
    assert others == [one] * 3
    assert "3 of 4 ranks differ from the others" in one
    _, settings, code, libraries = one.splitlines()
    assert "rank 1 on host" in settings and settings.endswith(": seed is 7, and 1 on rank 0")
    assert "rank 2 on host" in code and ": the code of pretrain/train/loop.py is " in code and ";" not in code
    assert "rank 3 on host" in libraries and ": the version of tokenizers is 9.9.9, and 0." in libraries
    assert not (place / "runs" / "torn" / "run.json").exists(), "it has not begun"

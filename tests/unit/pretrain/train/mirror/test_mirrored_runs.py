"""Whole runs whose disk is lost: they go on from their mirror and end as one that was never interrupted."""

import json
import shutil
from pathlib import Path

import fsspec
import pytest
from one_process import SETTINGS
from rank_threads import on_threads
from test_pretrain import assert_equal_runs

import pretrain
from pretrain.checkpoint.save import CheckpointConfig
from pretrain.errors import CheckpointError, ConfigError
from pretrain.train.mirror import restore
from pretrain.train.mirror.restore import fetch_lost
from pretrain.train.run_dir.base import RunConfig, RunDirectory


@pytest.fixture
def texts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("texts").mkdir()
    for number in range(30):
        Path(f"texts/{number}.txt").write_text(f"story {number} of the quick fox " * (number + 3))


def run(name, *more):
    return pretrain.pretrain(pretrain.configure(*SETTINGS, f"run.name={name}", "train.steps=5", *more))


def test_a_lost_run_goes_on_bit_for_bit_from_its_mirror(texts):
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    settings = ["schedule=constant", "schedule.warmup_steps=1", "checkpoint.every=2", "run.root=scratch"]
    mirrored = [*settings, "checkpoint.mirror=memory://user:word@bucket"]
    whole = run("whole", *settings)
    path = run("lost", "train.steps=2", *mirrored)
    assert "word" not in (path / "config.yaml").read_text() and "bucket" in (path / "config.yaml").read_text()
    shutil.rmtree(path)
    again = run("lost", *mirrored)
    assert_equal_runs(whole, again)
    record = json.loads((again / "run.json").read_text())
    assert sum("step-00000002 was fetched" in note for note in record["notes"]) == 1
    assert sorted(path.name for path in (again / "checkpoints").iterdir()) == ["step-00000004", "step-00000005"]
    there = {name.split("/")[-2] for name in memory.find("/") if name.endswith("mirror.json")}
    assert {"step-00000005"} <= there


def test_the_best_step_stays_on_the_mirror_and_comes_back_with_the_newest(texts):
    worse = ["schedule=constant", "schedule.warmup_steps=1", "optim.lr=1", "checkpoint.every=1", "eval.every=1"]
    mirrored = [*worse, "checkpoint.keep=1", "run.root=scratch", f"checkpoint.mirror=file://{Path.cwd()}/mirror"]
    path = run("rising", "train.steps=4", *mirrored)
    best = f"step-{json.loads((path / 'run.json').read_text())['best_step']:08d}"
    assert best < "step-00000004"
    shutil.rmtree(path)
    again = run("rising", *mirrored)
    kept = [best, "step-00000005"]
    assert sorted(step.name for step in (again / "checkpoints").iterdir()) == kept
    assert sorted(step.name for step in Path("mirror/rising").iterdir()) == kept
    assert f"{best}, the best step so far" in str(json.loads((again / "run.json").read_text())["notes"])


def test_a_url_that_cannot_be_is_refused_before_anything_is_done(texts):
    with pytest.raises(ConfigError, match=r"checkpoint.mirror=nope://x: nope://: fsspec knows no such store"):
        run("refused", "checkpoint.mirror=nope://x")
    assert not Path("runs/refused").exists()


def test_all_ranks_wait_for_the_one_that_fetches_and_fail_alike(tmp_path, monkeypatch):
    monkeypatch.setattr(restore, "WAITS_S", [])
    monkeypatch.setattr(restore, "POLL_S", 0.001)
    where = RunConfig(name="toy", root=str(tmp_path))
    directory = RunDirectory.claim(where)
    (tmp_path / "mirror" / "toy" / "step-00000003").mkdir(parents=True)
    (tmp_path / "mirror" / "toy" / "step-00000003" / "mirror.json").write_text("{}")
    cfg = CheckpointConfig(mirror=f"file://{tmp_path}/mirror")

    def body(world):
        fetch_lost(cfg, where, directory if world.is_first else None, world)

    found = on_threads(3, body)
    assert {type(error) for error in found} == {CheckpointError} and len({str(error) for error in found}) == 1
    directory.close()

"""The first step of a branch: what it takes over from its origin, and what is its own."""

import json
import shutil
from contextlib import closing
from types import SimpleNamespace

import pytest
import torch
from run_directories import GPT2_SETTINGS, json_of, make_run, settings_of
from toys import ALONE

from pretrain.checkpoint.load import fragments_of, load_state, newest_step
from pretrain.errors import CheckpointError, ConfigError, ResourceError
from pretrain.files import hash_file
from pretrain.tracking.jsonl import missing
from pretrain.train.branches import begin
from pretrain.train.branches.base import BranchConfig, BranchData, Origin
from pretrain.train.run_dir.base import RunConfig, RunDirectory

CONTINUE, FRESH = (BranchConfig(data=data) for data in BranchData)


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    """A run whose step 7 was evaluated as the best, and that began from other weights."""
    run = make_run(tmp_path_factory.mktemp("runs") / "main", *GPT2_SETTINGS)
    with closing(RunDirectory.claim(RunConfig(name="main", root=str(run.parent)))) as directory:
        directory.begin()
        directory.record(init_from="org/name@1", generation={"bad_words_ids": [[3]]})
    return run


def branched(parent, tmp_path, branch=CONTINUE, shapes=None, steps=9, **changed):
    """Begin a branch of the parent; return what run.json will say, and the record of committed steps."""
    step = parent / "checkpoints" / "step-00000007"
    cfg = RunConfig(name="branch", root=str(tmp_path))
    with closing(RunDirectory.claim(cfg)) as directory:
        session = SimpleNamespace(
            cfg=SimpleNamespace(run=cfg, branch=branch, train=SimpleNamespace(steps=steps)),
            world=ALONE,
            directory=directory,
        )
        ours = {**settings_of(parent), **changed}
        shapes = shapes or fragments_of(step).weight_shapes()
        entry = begin.begin_branch(Origin(parent, 7, "main"), session, shapes, ours, {}, ())
        return entry, directory.committed


def test_what_is_recorded_and_what_the_first_step_says(parent, tmp_path):
    entry, committed = branched(parent, tmp_path)
    known = {"run": "main", "step": 7, "data": "continue"}
    assert entry == {"branch": known, "init_from": "org/name@1", "generation": {"bad_words_ids": [[3]]}}
    step = newest_step(tmp_path / "branch" / "checkpoints", ALONE, committed)
    assert committed == {step.name: hash_file(step / "manifest.json")}
    state, theirs = load_state(step), load_state(parent / "checkpoints" / step.name)
    assert state["facts"]["branch"] == known
    assert {key: state[key] for key in theirs} == theirs
    assert missing(tmp_path / "branch" / "metrics.jsonl", 7, state["metrics"]) is None, "nothing is missed of its log"


@pytest.mark.parametrize(
    ("branch", "best", "kept"), [(CONTINUE, [7, 2.5], [7, 2.5]), (CONTINUE, [6, 2.5], None), (FRESH, [7, 2.5], None)]
)
def test_an_evaluation_counts_that_was_of_this_step_and_text(parent, tmp_path, monkeypatch, branch, best, kept):
    read = begin.load_state
    monkeypatch.setattr(
        begin, "load_state", lambda *of: {**read(*of), "best": best, "best_evaluation": best, "stalled": 2}
    )
    branched(parent, tmp_path, branch)
    state = json_of(tmp_path / "branch" / "checkpoints" / "step-00000007" / "state.json")
    assert (state["best"], state["best_evaluation"], state["stalled"]) == (kept, kept, 0)


def test_fresh_data_are_what_a_resume_will_compare(parent, tmp_path):
    branched(parent, tmp_path, FRESH, **{"data.seq_len": 16, "data.first_step": 7})
    state = json_of(tmp_path / "branch" / "checkpoints" / "step-00000007" / "state.json")
    assert state["resume"] == {**settings_of(parent), "data.seq_len": 16, "data.first_step": 7}


def test_nothing_is_written_for_a_step_that_does_not_fit(parent, tmp_path):
    with pytest.raises(CheckpointError, match=r"of another architecture, \d+ tensors differ"):
        branched(parent, tmp_path, shapes={"model.embedding.weight": torch.Size([3, 5])})
    with pytest.raises(CheckpointError, match=r"branch_from=main@7: model\.heads is 2 here and 4 there"):
        branched(parent, tmp_path, **{"model.heads": 2})
    with pytest.raises(ConfigError, match=r"train\.steps=7: the branch begins at step 7 of .*main; raise it"):
        branched(parent, tmp_path, steps=7)
    damaged = shutil.copytree(parent, tmp_path / "damaged")
    [file] = damaged.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    with pytest.raises(CheckpointError, match="its SHA-256 is not the manifest's"):
        branched(damaged, tmp_path)
    assert not (tmp_path / "branch" / "checkpoints").exists()


def test_a_full_disk_is_said_by_its_kind(parent, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(begin, "copy_step", full)
    with pytest.raises(ResourceError, match="No space left on device; free space, and start again"):
        branched(parent, tmp_path)
    assert json.loads((parent / "run.json").read_text())["name"] == "main"

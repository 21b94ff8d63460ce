"""What a resume says of settings that changed: which of them, and by the names that users type."""

from contextlib import closing

import pytest

from pretrain.compose import compose
from pretrain.train.run_dir.base import RunConfig, RunDirectory
from pretrain.train.run_dir.changes import changes, choice_name
from pretrain.train.run_dir.record import read_config


@pytest.fixture
def run(tmp_path):
    with closing(RunDirectory.claim(RunConfig(name="a", root=str(tmp_path)))) as directory:
        yield directory


def test_changes_are_those_of_settings_that_both_starts_have(run):
    first = compose(["train.steps=12", "optim.lr=0.001", "data.seq_len=64"])
    assert changes(run.path, first) == []
    run.write_config(first)
    assert changes(run.path, compose(["train.steps=12", "optim.lr=0.001", "data.seq_len=64"])) == []
    changed = changes(run.path, compose(["train.steps=13", "optim=muon", "optim.lr=0.002", "data.seq_len=64"]))
    assert {"train.steps: 12 -> 13", "optim: adamw -> muon", "optim.lr: 0.001 -> 0.002"} <= {*changed}
    assert not [change for change in changed if change.startswith(("data.", "optim.ns_steps"))]
    assert read_config(run.path)["train.steps"] == 12


def test_strategies_are_named_by_their_stage(run):
    run.write_config(compose(["strategy=zero1"]))
    changed = changes(run.path, compose(["strategy=zero3", "strategy.offload_optimizer=cpu"]))
    assert {"strategy: zero1 -> zero3", "strategy.offload_optimizer: none -> cpu"} <= {*changed}
    assert "strategy: zero1 -> fsdp2" in changes(run.path, compose(["strategy=fsdp2"]))


def test_settings_of_a_strategy_that_are_not_known_any_more_leave_the_name_of_its_kind(run):
    run.write_config(compose(["strategy=zero1"]))
    config = run.path / "config.yaml"
    config.write_text(config.read_text().replace("  stage: 1\n", "  stage: 9\n"))
    assert "strategy: zero -> fsdp2" in changes(run.path, compose(["strategy=fsdp2"]))


@pytest.mark.parametrize(
    ("key", "value", "typed"), [("optim", "MuonConfig", "muon"), ("optim", "Gone", "Gone"), ("model.width", 5, 5)]
)
def test_choices_are_named_as_users_type_them(key, value, typed):
    compose([])  # registers the choices
    assert choice_name(key, value) == typed

"""How the step that a run branches off is named, and what a branch must have in common with it."""

import pytest
from run_directories import GPT2_SETTINGS, make_run

from pretrain.compose import compose
from pretrain.errors import CheckpointError, ConfigError, DataError
from pretrain.train.branches.base import BranchConfig, BranchData, Origin, check_differences, first_data_step
from pretrain.train.run_dir.base import RunConfig

CONTINUE, FRESH = (BranchConfig(data=data) for data in BranchData)


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "main", *GPT2_SETTINGS, "optim.lr=0.25", "train.batch_size=12")


@pytest.mark.parametrize(
    ("typed", "step"), [("{}", None), ("{}@7", 7), ("main@7", 7), ("main", None), ("{}/../main@007", 7)]
)
def test_a_step_is_named_by_a_path_or_by_a_name_in_the_root(parent, typed, step):
    origin = Origin.of(typed.format(parent), str(parent.parent))
    assert (origin.run.resolve(), origin.step) == (parent, step)
    assert origin.resolved().step == 7


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("other@7", r"branch_from=other@7: no such run, neither other nor .*/runs.*/other"),
        ("main@8", r"branch_from=main@8: step 8 is not saved .*; there are 7 .*checkpoint\.keep_every"),
        ("@7", "branch_from=@7: names a run and a saved step"),
        ("main@last", "branch_from=main@last: no such run"),
    ],
)
def test_what_is_no_saved_step_is_refused_by_name(parent, typed, said):
    with pytest.raises(ConfigError, match=said):
        Origin.of(typed, str(parent.parent)).resolved()


THEIRS = {"tokenizer": "abc", "data.seq_len": 32, "seed": 1, "model.width": 24, "optim": "AdamWConfig"}


@pytest.mark.parametrize(
    ("changed", "branch", "kind", "said"),
    [
        ({"model.width": 32}, FRESH, CheckpointError, r"model\.width is 32 here and 24 there.*\(init_from\)"),
        ({"model.rank": 3}, CONTINUE, CheckpointError, r"model\.rank is 3 here and null there"),
        ({"optim": "MuonConfig"}, FRESH, CheckpointError, "optim is muon here and adamw there"),
        (
            {"tokenizer": "xyz"},
            FRESH,
            DataError,
            r"tokenizer is xyz.*; set tokenizer=file tokenizer\.path=.*/main/tokenizer\.json",
        ),
        ({"data.seq_len": 16}, CONTINUE, DataError, r"data\.seq_len is 16 here and 32 there.*branch\.data=fresh"),
        ({"seed": 2, "data.seq_len": 16}, FRESH, None, ""),
        ({}, CONTINUE, None, ""),
    ],
)
def test_network_and_tokenizer_agree_and_data_unless_they_are_fresh(parent, changed, branch, kind, said):
    origin = Origin(parent, 7, "main")
    if kind is None:
        check_differences(origin, THEIRS, {**THEIRS, **changed}, branch)
        return
    with pytest.raises(kind, match=rf"branch_from=main@7: {said}"):
        check_differences(origin, THEIRS, {**THEIRS, **changed}, branch)


def test_what_is_gone_counts_as_a_difference(parent):
    with pytest.raises(DataError, match=r"data\.stride is null here and 4 there"):
        check_differences(Origin(parent, 7, "main"), {**THEIRS, "data.stride": 4}, THEIRS, CONTINUE)


def test_fresh_data_begin_at_the_branch(parent, tmp_path):
    cfg, origin = RunConfig(name="new", root=str(tmp_path)), Origin(parent, 7, "main")
    assert first_data_step(cfg, origin, FRESH) == 7
    assert first_data_step(cfg, origin, CONTINUE) == first_data_step(cfg, None, CONTINUE) == 0
    assert first_data_step(RunConfig(name="main", root=str(parent.parent)), None, FRESH) == 0, "its own steps say"


def composed(parent, *words):
    return compose([f"run.root={parent.parent}", "run.name=cool", "branch_from=main@7", *words])


def test_a_branch_takes_over_what_decides_what_is_learnt(parent, capsys):
    cfg = composed(parent, "schedule=cooldown", "train.steps=60", "train.micro_batch_tokens=96")
    assert (cfg.branch_from, cfg.schedule.from_step, cfg.train.steps) == ("main@7", 7, 60)
    assert (cfg.model.width, cfg.data.seq_len, cfg.optim.lr, cfg.train.batch_size) == (24, 32, 0.25, 12)
    assert (cfg.run.name, cfg.strategy.title) == ("cool", compose([]).strategy.title)
    said = capsys.readouterr().err.splitlines()
    taken = "seed, data, tokenizer, model, objective, optim, guard, train, divergence, eval, precision"
    assert said[0] == f"what is not given is that of {parent}: {taken}"
    assert "schedule.from_step=7, where the run branches off" in said
    assert composed(parent, "schedule=cooldown", "schedule.from_step=9", "train.steps=60").schedule.from_step == 9


def test_what_is_given_counts(parent, tmp_path):
    cfg = composed(parent, "optim.lr=0.125", "model.dropout=0.5", "seed=3", "model.init_std=0.1", "train.steps=9")
    assert (cfg.optim.lr, cfg.model.dropout, cfg.seed, cfg.model.width) == (0.125, 0.5, 3, 24)
    texts = ["branch.data=fresh", "data=text", "data.sources.text.paths=[other.txt]", "data.packing=best_fit"]
    cfg = composed(parent, *texts)
    assert (list(cfg.data.sources), cfg.data.sources["text"].paths) == (["text"], ["other.txt"])
    assert (cfg.data.seq_len, cfg.data.packing.value) == (32, "best_fit")
    assert cfg.tokenizer.path == str(parent / "tokenizer.json"), "other texts would make another tokenizer"
    own = tmp_path / "own.yaml"
    own.write_text("optim: {lr: 0.5}\nschedule: {warmup_steps: 3}\n")
    cfg = composed(parent, f"experiment={own}", "train.steps=9")
    assert (cfg.optim.lr, cfg.schedule.warmup_steps, cfg.model.width) == (0.5, 3, 24)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["init_from=main"], "branch_from=.*: .*leave out one of the two"),
        (["branch_from=null", "branch.data=fresh"], r"branch\.data=fresh: nothing branches off"),
        (["optim.momentum=0.5"], r"optim\.momentum"),
    ],
)
def test_settings_that_contradict_a_branch_are_refused(parent, words, said):
    with pytest.raises(ConfigError, match=said):
        composed(parent, *words)

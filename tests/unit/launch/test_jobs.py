"""What stands behind `--`: programs, their checks, and the jobs of a sweep."""

import sys
from pathlib import Path

import pytest

from launch.jobs import corpora_root, jobs_of, without_secrets
from pretrain.errors import ConfigError

TINY = ["experiment=demo", "run.root=there"]


@pytest.fixture(autouse=True)
def arguments(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.chdir(tmp_path)


def test_one_job_has_the_command_line_as_it_was_typed():
    [job] = jobs_of(["pretrain", *TINY, "seed=7"])
    assert (job.program, job.overrides, job.point) == ("pretrain", [*TINY, "seed=7"], "")
    assert (job.name, job.directory, job.cfg.seed) == ("demo", Path("there/demo"), 7)


def test_a_sweep_names_its_runs_and_each_composes():
    jobs = jobs_of(["pretrain", *TINY, "optim.lr=1e-3,2e-3", "seed=range(2)"])
    assert [(job.cfg.optim.lr, job.cfg.seed) for job in jobs] == [(1e-3, 0), (1e-3, 1), (2e-3, 0), (2e-3, 1)]
    assert [str(job.directory) for job in jobs] == [
        "there/demo-lr-0.001-seed-0",
        "there/demo-lr-0.001-seed-1",
        "there/demo-lr-0.002-seed-0",
        "there/demo-lr-0.002-seed-1",
    ]
    assert {job.sweep for job in jobs} == {"demo"}
    assert jobs[3].overrides == [*TINY, "optim.lr=0.002", "seed=1", "++run.name=demo-lr-0.002-seed-1"]
    assert jobs[3].point == "optim.lr=0.002 seed=1"


def test_names_that_are_swept_stay():
    jobs = jobs_of(["pretrain", *TINY, "run.name=a,b"])
    assert [job.name for job in jobs] == ["a", "b"]


def test_experiments_of_their_own_names():
    jobs = jobs_of(["pretrain", "experiment=demo,demo_bert"])
    assert [job.name for job in jobs] == ["demo-experiment-demo", "demo_bert-experiment-demo_bert"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "--: name a program after --"),
        (["pretrian"], "did you mean pretrain? (one of: pretrain, finetune)"),
        (["pretrain", "train.stepz=1"], "train.stepz: no such setting; did you mean train.steps?"),
        (["pretrain", "seed=1,2", "optim.lr=-1"], "optim.lr"),
        (["pretrain", "seed=1,2", "optim.lr=1e-3,fast"], "optim.lr"),
        (
            ["pretrain", "--multirun", "seed=1,2"],
            "`python -m launch local nproc=N -- pretrain ...`, without --multirun",
        ),
        (["pretrain", "tokenizer.path=/a?b,/a:b", "tokenizer=file"], "would run in"),
        (["finetune"], "task: required and not given"),
    ],
)
def test_what_is_refused_before_anything_starts(words, told):
    with pytest.raises(ConfigError) as refused:
        jobs_of(words)
    assert told in str(refused.value)


@pytest.mark.parametrize(
    "word",
    [
        "data.sources.more.paths=['https://me:S3CRET@host/a.txt']",
        "+tracker.api_key=S3CRET",
        "init_from=https://host/?access_token=S3CRET",
        "tracker.project=hf_" + "S3CRET" * 4,
    ],
)
def test_a_secret_is_to_be_exported_since_a_job_script_would_show_it(word):
    with pytest.raises(ConfigError, match=r"export it under a name, and type '\S+=\$\{oc.env:NAME\}'$") as refused:
        without_secrets(["pretrain", "seed=1", word])
    assert "S3CRET" not in str(refused.value)


def test_the_name_of_a_secret_is_none():
    words = ["pretrain", "run.name=demo", "+tracker.api_key=${oc.env:WANDB_API_KEY}", "--config-dir", "own"]
    assert without_secrets(words) == words


def test_where_a_preparation_writes(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    source = ["data=text", f"data.sources.text.paths=[{tmp_path}/a.txt]"]
    assert corpora_root([*source, f"data.prepare.root={tmp_path}/c"]) == tmp_path / "c"
    with pytest.raises(ConfigError, match=r"b\.txt"):
        corpora_root(["data=text", f"data.sources.text.paths=[{tmp_path}/b.txt]"])

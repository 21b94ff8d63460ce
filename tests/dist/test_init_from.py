"""Runs that begin with the weights of others, on one rank and on two."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from hugging_face_directories import write_released
from ranks import column, on_ranks, run, tiny
from run_directories import GPT2_SETTINGS, load_run, make_run, settings_of

from pretrain.checkpoint.base import WEIGHT
from pretrain.export import main
from pretrain.init_from import InitialWeights, weights_from
from pretrain.models.encoder import EncoderConfig
from pretrain.trained.source import open_source, shared_source

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def exported(uninterrupted) -> Path:
    assert main([str(uninterrupted)]) == 0
    return uninterrupted / "export"


@pytest.mark.parametrize(("source", "ranks"), [("run", 1), ("run", 2), ("export", 1), ("export", 2)])
def test_a_run_begins_where_its_source_ended(place, uninterrupted, exported, source, ranks):
    name = f"from-{source}-{ranks}"
    folder = {"run": uninterrupted, "export": exported}[source].relative_to(place)
    more = ["train.steps=4", "train.micro_batch_size=4", f"init_from={folder}"]
    run(*tiny(name, *more), ranks=ranks, cwd=place)
    losses = column(place / "runs" / name, "loss", "validation")
    assert losses[0] == pytest.approx(column(uninterrupted, "loss", "validation")[24], abs=1e-6)
    assert column(place / "runs" / name, "loss")[1] < column(uninterrupted, "loss")[1] - 0.5


ABOUT_TEXT_AND_LENGTH = ("data=", "data.sources", "data.prepare", "train.", "eval.")
TEXT_AND_LENGTH = [*(override for override in tiny("") if override.startswith(ABOUT_TEXT_AND_LENGTH)), "train.steps=2"]


@pytest.mark.parametrize("source", ["run", "export"])
def test_network_and_tokenizer_come_with_the_weights(place, uninterrupted, exported, source):
    """All that is given beside the source is the text and how long to train."""
    folder = {"run": uninterrupted, "export": exported}[source].relative_to(place)
    name = f"further-{source}"
    run(f"run.name={name}", f"init_from={folder}", *TEXT_AND_LENGTH, cwd=place)
    losses = column(place / "runs" / name, "loss", "validation")
    assert losses[0] == pytest.approx(column(uninterrupted, "loss", "validation")[24], abs=1e-6)
    assert sorted(losses) == [0, 2]


def test_a_released_encoder_is_continued_without_any_model_setting(place, tmp_path):
    config = EncoderConfig(max_seq_len=32, width=32, layers=1, heads=4)
    write_released(tmp_path / "bert", config, (place / "text.txt").read_text().split("\n\n"))
    done = run("run.name=from-bert", f"init_from={tmp_path}/bert", *TEXT_AND_LENGTH, cwd=place)
    assert f"starting from the weights of {tmp_path}/bert" in done.stderr
    assert "init_from: " not in done.stderr, "nothing is new, left or different"
    again = run("run.name=from-bert", f"init_from={tmp_path}/bert", *TEXT_AND_LENGTH, "train.steps=3", cwd=place)
    assert "resuming from" in again.stderr and "changed since" in again.stderr
    assert sorted(column(place / "runs" / "from-bert", "loss", "validation")) == [0, 2, 3]


def test_a_resumed_run_asks_for_its_source_no_more(place, uninterrupted):
    overrides = tiny("resumed", "train.steps=4", "init_from=source")
    shutil.copytree(uninterrupted, place / "source")
    run(*overrides, cwd=place)
    shutil.rmtree(place / "source")
    run(*overrides, "train.steps=6", cwd=place)
    assert sorted(column(place / "runs" / "resumed", "loss")) == [1, 2, 3, 4, 5, 6]


def test_a_name_on_the_hub_is_kept_with_its_commit(place, uninterrupted, exported, tmp_path, monkeypatch):
    repository = tmp_path / "hub" / "models--org--name"
    shutil.copytree(exported, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    overrides = tiny("from-hub", "train.micro_batch_size=4", "init_from=org/name@main")
    run(*overrides, "train.steps=4", ranks=2, cwd=place)
    losses = column(place / "runs" / "from-hub", "loss", "validation")
    assert losses[0] == pytest.approx(column(uninterrupted, "loss", "validation")[24], abs=1e-6)
    shutil.rmtree(repository)
    run(*overrides, "train.steps=5", cwd=place)  # resumes
    assert json.loads((place / "runs" / "from-hub" / "run.json").read_text())["init_from"] == f"org/name@{COMMIT}"
    log = (place / "runs" / "from-hub" / "log.txt").read_text()
    assert log.count(f"starting from the weights of org/name@{COMMIT}") == 1


def begin(world, run):
    found = open_source(f"org/name@{COMMIT}") if world.is_first else None
    source, module, tokenizer = shared_source(found, world), load_run(run), run / "tokenizer.json"
    read = weights_from(source, InitialWeights(module, 2), settings_of(run), world, tokenizer=tokenizer)
    for key, tensor in module.named_parameters():
        assert torch.equal(read(key, WEIGHT, 0, tensor.numel()), tensor.detach().reshape(-1))


def test_the_commit_of_the_first_rank_is_that_of_all(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", *GPT2_SETTINGS)
    commit = tmp_path / "hub" / "models--org--name" / "snapshots" / COMMIT
    assert main([str(run), "--out", str(commit)]) == 0
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    on_ranks(2, begin, run)


@pytest.mark.parametrize("source", ["runs/uninterrupted/log.txt", "runs/uninterupted", "org/name"])
def test_what_is_not_there_is_refused_before_anything_is_made(place, uninterrupted, tmp_path, monkeypatch, source):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folders = [f"run.root={tmp_path}/runs", f"data.prepare.root={tmp_path}/corpora"]
    done = run(*tiny("refused", *folders, f"init_from={source}"), code=2, cwd=place)
    assert f"init_from={source}: " in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists() and not (tmp_path / "corpora").exists()


@pytest.mark.parametrize(
    ("source", "override", "code", "refusal"),
    [
        ("", "model.width=64", 4, "model.blocks.0.attention.out.weight is (32, 32), the model's (64, 64)"),
        ("/export", "model.heads=2", 4, "model.heads is 2, that of"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(place, exported, source, override, code, refusal):
    done = run(*tiny("refused", f"init_from=runs/uninterrupted{source}", override), code=code, cwd=place)
    assert refusal in done.stderr
    assert "Traceback" not in done.stderr
    assert not (place / "runs" / "refused" / "run.json").exists(), "no run has begun"

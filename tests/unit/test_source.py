"""What a run may start from is found, refused by name, and known: its network, its tokenizer, its frame."""

import re
import shutil
from pathlib import Path

import pytest
from run_directories import GPT2_SETTINGS, make_run

from pretrain.errors import CheckpointError, ConfigError
from pretrain.export import main
from pretrain.source import find_source


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run", *GPT2_SETTINGS)


def test_what_a_run_may_start_from_is_found(run, tmp_path, monkeypatch):
    assert main([str(run)]) == 0
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for source in ("run", "./run", "run/export", str(run), "~/run"):
        assert find_source(source, first=True) == find_source(source, first=False) == source


NOT_THERE = "no such directory; name a run, a Hugging Face directory or, as org/name@main, a checkpoint on the hub"


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    ("init_from", "kind", "problem"),
    [
        ("runs/other", ConfigError, NOT_THERE),
        ("./run", ConfigError, NOT_THERE),
        ("~/run", ConfigError, NOT_THERE),
        ("/run/small", ConfigError, NOT_THERE),
        ("runs/run/log.txt", ConfigError, "neither config.json (Hugging Face) nor checkpoints (a run) in it"),
        ("runs", ConfigError, "neither config.json (Hugging Face) nor checkpoints (a run) in it"),
        ("runs/empty", CheckpointError, "no step is saved there"),
        ("runs/torn", CheckpointError, "model.safetensors: not a readable safetensors file"),
        ("runs/garbled", CheckpointError, "tokenizer.json: not a readable tokenizer; fetch or write it again"),
        ("runs/foreign", ConfigError, "config.json: model_type=t5: not an architecture of ours"),
    ],
)
def test_what_is_not_there_or_neither_is_refused_before_anything_is_prepared(
    tmp_path, monkeypatch, first, init_from, kind, problem
):
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path / "runs" / "run", *GPT2_SETTINGS)
    (run / "log.txt").write_text("")
    assert main([str(run)]) == 0
    for copy in ("torn", "garbled", "foreign"):
        shutil.copytree(run / "export", tmp_path / "runs" / copy)
    Path("runs/torn/model.safetensors").write_bytes(b"torn")
    Path("runs/garbled/tokenizer.json").write_text("{")
    Path("runs/foreign/config.json").write_text('{"model_type": "t5"}')
    Path("runs/empty/checkpoints").mkdir(parents=True)
    with pytest.raises(kind, match=re.escape(problem)) as refused:
        find_source(init_from, first=first)
    assert init_from.removeprefix("~") in str(refused.value)

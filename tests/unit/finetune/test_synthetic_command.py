"""The command: the same bytes wherever it runs, and files that fine-tuning reads without a fault."""

import os
import subprocess
import sys

import pytest

from finetune.config import FINETUNE
from finetune.synthetic.__main__ import write
from finetune.synthetic.packages import examples
from finetune.synthetic.signatures import questions
from pretrain.compose import compose
from pretrain.errors import ConfigError

SETS = {"packages": examples, "signatures": questions}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder where a process has written its files to where it does so unless told otherwise."""
    folder = tmp_path_factory.mktemp("synthetic")
    # Another order of sets and dictionaries of strings than that of the tests.
    env = {**os.environ, "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-m", "finetune.synthetic"], cwd=folder, env=env, check=True)
    return folder


@pytest.mark.parametrize("name", SETS)
def test_the_files_are_the_same_in_each_process(folder, library, tmp_path, name):
    for split, records in zip(("train", "validation"), SETS[name](library), strict=True):
        write(tmp_path / "file.jsonl", records)
        theirs = folder / "data" / "synthetic" / name / f"{split}.jsonl"
        assert theirs.read_bytes() == (tmp_path / "file.jsonl").read_bytes()


@pytest.mark.parametrize("name", SETS)
def test_their_experiment_reads_them(folder, monkeypatch, name):
    monkeypatch.chdir(folder)
    cfg = compose([f"experiment=synthetic/{name}"], root=FINETUNE)
    assert cfg.run.name == f"synthetic_{name}"
    for file in (cfg.task.train, cfg.task.validation):
        assert len(cfg.task.records(file)) == len((folder / file).read_text().splitlines()) > 100


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file/packages\.jsonl: cannot be written .*; name another folder"):
        write(tmp_path / "file" / "packages.jsonl", [])

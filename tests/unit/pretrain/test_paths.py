"""Settings that are paths: `~` and variables mean the same in each, and nothing in what somebody else wrote."""

import os
from pathlib import Path

import pytest

from launch.slurm.cluster import ClusterConfig
from launch.slurm.script import Shape, module_script
from pretrain.compose import compose
from pretrain.data.prepare.cache_key import corpus_directories
from pretrain.data.prepare.config import PrepareConfig
from pretrain.data.sources.base import PreparedSource, TextSource
from pretrain.data.sources.structured import HubSource
from pretrain.errors import ConfigError
from pretrain.settings.paths import expanded
from pretrain.strategy.zero import Offload, ZeROConfig
from pretrain.tokenizer.file import Gpt2Tokenizer, TokenizerFile
from pretrain.train.run_dir.base import RunConfig, RunDirectory
from pretrain.train.run_dir.record import read_config
from pretrain.trained.source import open_source


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home that has a folder x with a file a.txt in it."""
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.txt").write_text("a")
    (tmp_path / "x" / "config.json").write_text("{}")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FOLDER", "x")
    return tmp_path


def script(**values):
    return module_script(ClusterConfig(**values), Shape(name="x"), ["pretrain.prepare"], Path.cwd())


SETTINGS = {
    "run.root": lambda path: RunConfig(root=path).directory.parent,
    "data.prepare.root": lambda path: PrepareConfig(root=path).directory,
    "data.sources.*.paths": lambda path: Path(TextSource(paths=[f"{path}/a.txt"]).inputs()[0].name).parent,
    "data.sources.x.path": lambda path: corpus_directories({"x": PreparedSource(path=path)}, {}, None, None)["x"],
    "data.sources.*.path": lambda path: Path(HubSource(path=path).inputs()[0].name).parent,
    "tokenizer.path": lambda path: TokenizerFile(path=path).files()[0].parent,
    "tokenizer.path of gpt2": lambda path: Gpt2Tokenizer(path=path).files()[0].parent,
    "init_from": lambda path: open_source(path).path,
    "strategy.nvme_path": lambda path: ZeROConfig(stage=3, offload_optimizer=Offload.nvme, nvme_path=path).nvme_folder,
    "cluster.venv": lambda path: path if f"source {Path.home()}/x/bin" not in script(venv=path) else Path.home() / "x",
    "cluster.container": lambda path: Path(script(container=path).split(" apptainer exec ")[1].split()[0]),
    "cluster.mounts": lambda path: Path(script(container="i", mounts=[path]).split("--bind=")[1].split()[0]),
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("typed", ["~/x", "$HOME/x", "${HOME}/x", "~/$FOLDER", "${HOME}/${FOLDER}"])
def test_home_and_variables_in_every_setting(home, setting, typed):
    assert SETTINGS[setting](typed) == home / "x"


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_variable_that_is_not_set_is_named_with_the_setting(setting):
    with pytest.raises(ConfigError, match=rf"^{setting.split()[0]}=\$NO_SUCH: ".replace("*", r"\*")):
        SETTINGS[setting]("$NO_SUCH/x")


@pytest.mark.parametrize("value", ["~nobody-of-that-name/x", "$EMPTY/x", "${EMPTY}"])
def test_what_cannot_be_filled_in_is_refused(monkeypatch, value):
    monkeypatch.setenv("EMPTY", "")
    with pytest.raises(ConfigError, match=r"^key="):
        expanded(value, "key")


@pytest.mark.parametrize("value", ["a$", "$1", "a~b", "a/~/b", "$(x)", "${a b}", "100$.txt", "s3://b/~x", "", "./~"])
def test_other_dollars_and_tildes_stay(value):
    assert expanded(value, "key") == value


def test_another_users_home_is_known():
    assert expanded("~root/x", "key") == os.path.expanduser("~root/x")  # noqa: PTH111


def test_what_exists_is_itself(home, monkeypatch):
    monkeypatch.chdir(home)
    (home / "$FOLDER").mkdir()
    assert expanded("$FOLDER", "key") == "$FOLDER"


def test_a_run_keeps_what_was_typed(home):
    words = ["data=text", "data.sources.text.paths=['~/$FOLDER/*.txt']", "run.root=$HOME/runs", "run.name=a"]
    cfg = compose(words)
    directory = RunDirectory.claim(cfg.run)
    directory.write_config(cfg)
    assert directory.path == home / "runs" / "a"
    kept = read_config(directory.path)
    assert (kept["run.root"], kept["data.sources.text.paths"]) == ("$HOME/runs", ["~/$FOLDER/*.txt"])

"""Modules from outside of the clone: imported where the user names them, and never where a run does."""

import re

import pytest
from forks import python

from pretrain.errors import ConfigError
from pretrain.settings.plugins import import_plugins
from pretrain.train.run_dir.record import read_config

PARTS = """
from dataclasses import dataclass

from pretrain.data.sources.base import FileSource, byte_ranges
from pretrain.data.sources.documents import lines
from pretrain.data.sources.readers import open_bytes
from pretrain.models.decoder import DecoderConfig
from pretrain.registry import register


@register("model", "shallow")
@dataclass(kw_only=True)
class ShallowConfig(DecoderConfig):
    layers: int = 1
    width: int = 24
    heads: int = 2


@register("source", "shouted")
@dataclass(kw_only=True)
class ShoutedSource(FileSource):
    def ranges(self, inputs, unit_bytes):
        return byte_ranges(inputs, unit_bytes, divisible=True)

    def read(self, part, bad):
        with open_bytes(part.file) as stream:
            for raw in lines(stream, *part):
                yield raw._replace(data=raw.data.upper())
"""
SETTINGS = """
plugins: [parts.mine]
defaults:
  - /source@data.sources.mine: shouted
  - override /data: packed
  - override /model: shallow
run: {name: mine}
data:
  seq_len: 32
  sources: {mine: {paths: [text.txt]}}
  prepare: {held_out: 0.1, workers: 1, unit_bytes: 500}
tokenizer: {vocab_size: 280}
train: {steps: 2, batch_size: 4, micro_batch_size: 2}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("outside")
    (place / "parts").mkdir()
    (place / "parts" / "mine.py").write_text(PARTS)
    (place / "mine.yaml").write_text(SETTINGS)
    (place / "text.txt").write_text("".join(f"the time of day number {n}\n" for n in range(80)))
    return place


@pytest.fixture(scope="module")
def run(folder):
    done = python("-m", "pretrain", "experiment=mine.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "mine"


def test_a_file_names_them_and_they_serve_its_own_choices(run):
    held = read_config(run)
    assert held["plugins"] == ["parts.mine"] and held["model.layers"] == 1
    assert "experiment" not in held and "mine.yaml" not in (run / "config.yaml").read_text()


@pytest.mark.slow
def test_the_workers_of_a_preparation_have_them_too(folder):
    words = ["experiment=mine.yaml", "tokenizer.vocab_size=270", "data.prepare.workers=2"]
    done = python("-m", "pretrain.prepare", *words, cwd=folder)
    assert done.returncode == 0 and " in 5 shards of " in done.stdout, done.stderr + done.stdout


def test_a_command_names_them_and_joins_them_to_those_of_the_file(folder):
    done = python("-m", "pretrain", "--cfg", "job", "plugins=[parts.mine]", "model=shallow", cwd=folder)
    assert done.returncode == 0 and "plugins:\n- parts.mine\n" in done.stdout and "width: 24" in done.stdout


@pytest.mark.parametrize("command", ["pretrain.sample", "pretrain.export"])
def test_a_run_does_not_import_them(folder, run, command):
    done = python("-m", command, "runs/mine", cwd=folder)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    told = "the run was made with plugins=[parts.mine]: if you trust them, add --plugins parts.mine"
    assert "model=shallow: no choice of Headwater's" in done.stderr and told in done.stderr
    short = ["--max-tokens=3"] if command == "pretrain.sample" else []
    done = python("-m", command, "runs/mine", *short, "--plugins", "parts.mine", cwd=folder)
    assert done.returncode == 0, done.stderr


def test_nor_does_a_run_that_starts_from_it(folder, run):
    done = python("-m", "pretrain", "init_from=runs/mine", "run.name=other", "train.steps=2", cwd=folder)
    assert done.returncode == 2 and "or that setting" in done.stderr


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x = 1\nx / 0\n", r"broken: \S+/broken\.py:2: ZeroDivisionError: division by zero; mend the module"),
        ("x = (\n", r"\S+/broken\.py:1: SyntaxError: '\(' was never closed"),
        ("import no_such_part\n", r"\S+/broken\.py:1: ModuleNotFoundError: No module named 'no_such_part'"),
        ("raise SystemExit(0)\n", r"\S+/broken\.py:1: SystemExit: 0"),
        ("x = 1\n", r"broken: registers nothing: a plugin has classes below @register"),
        (
            "from dataclasses import dataclass\nfrom pretrain.registry import register\n"
            "@register('optim', 'adamw')\n@dataclass\nclass Mine: pass\n",
            r"\S+/broken\.py:3: optim=adamw is registered by pretrain\.optim\.adamw; give yours another name",
        ),
    ],
)
def test_what_fails_is_told_by_file_and_line(tmp_path, text, told):
    (tmp_path / "broken.py").write_text(text)
    done = python("-m", "pretrain", "plugins=[broken]", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert re.search(told, done.stderr), done.stderr


def test_what_is_no_module_is_told_with_what_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"'my/part\.py' is not the name of a module.* did you mean my\.part\?"):
        import_plugins(["my/part.py"])
    with pytest.raises(ConfigError, match=r"nowhere_at_all\.sub: no such module, neither in "):
        import_plugins(["nowhere_at_all.sub"])

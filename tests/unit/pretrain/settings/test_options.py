"""The options of commands: what is typed wrongly, and what is said of it."""

import argparse
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from pretrain.commands import command
from pretrain.errors import ConfigError
from pretrain.settings.export_options import DTYPES
from pretrain.settings.options import CommandParser, version_text

DOORS = {
    "pretrain.sample": "prompt",
    "pretrain.evaluate": "against",
    "pretrain.export": "step",
    "pretrain.average": "ema",
    "pretrain.import_bin": "model_type",
    "pretrain.report.__main__": "out",
    "pretrain.report.listing": "sort",
    "finetune.evaluate": "step",
    "finetune.export": "step",
    "finetune.predict": "step",
    "finetune.report.__main__": "out",
    "launch.table": None,
}


def parser():
    made = CommandParser(prog="python -m x", description="Do it.", example="python -m x runs/demo")
    made.add_argument("run", type=Path)
    made.add_argument("source", nargs="?", default="-")
    made.add_argument("--step", type=int)
    made.add_argument("--top-p", type=float, default=0.9)
    made.add_argument("--prompt", default="")
    made.add_argument("--dtype", choices=DTYPES, default="fp32")
    made.add_argument("--set", action="append", default=[])
    made.add_argument("--overwrite", action="store_true")
    return made


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ([], "run: missing; for example: python -m x runs/demo"),
        (["--step", "3"], "run: missing; for example"),
        (["a", "--step", "abc"], "--step abc: must be a whole number, such as 3"),
        (["a", "--step=1e3"], "--step 1e3: must be a whole number"),
        (["a", "--top-p", "half"], "--top-p half: must be a number, such as 0.5"),
        (["a", "--dtype", "bf1"], "--dtype bf1: no such choice; did you mean bf16? (choices: fp32, bf16, fp16)"),
        (["a", "--step"], "--step: needs a value"),
        (["a", "--step", "--overwrite"], "--step: needs a value"),
        (["a", "--prompt", "-x"], "--prompt: needs a value; one that begins with a dash is typed --prompt=-x"),
        (["a", "--prompt", "b", "--prompt=c"], "--prompt b and --prompt=c: --prompt is given twice; give it once"),
        (["a", "--overwrite", "--overwrite"], "--overwrite is given twice"),
        (["a", "--overwrite=true"], "--overwrite=true: --overwrite takes no value; leave it out"),
        (["a", "--stpe", "3"], "--stpe: no such option; did you mean --step? (options: --help, --version, --step,"),
        (["a", "--st", "3"], "--st: no such option; did you mean --step?"),
        (["a", "--top_p", "1"], "--top_p: no such option; did you mean --top-p?"),
        (["a", "-step", "1"], "-step: no such option; did you mean --step?"),
        (["a", "-x"], "-x: no such option (options: "),
        (["a", "b", "c"], "c: one word too many; for example: python -m x runs/demo"),
        (["run=a"], "run=a: this command takes options, not settings KEY=VALUE; type a"),
        (["a", "step=3"], "step=3: this command takes options, not settings KEY=VALUE; type --step 3"),
        (["a", "b", "++top_p=1"], "++top_p=1: this command takes options, not settings KEY=VALUE; type --top-p 1"),
        (["a", "seed=3"], "seed=3: this command takes options, not settings KEY=VALUE; for example: python"),
    ],
)
def test_what_is_refused_and_what_is_said(typed, said):
    with pytest.raises(ConfigError) as refused:
        parser().parse_args(typed)
    assert str(refused.value).startswith(said) or (said.startswith("--overwrite is") and said in str(refused.value))


def test_what_is_accepted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lang=en").mkdir()
    typed = [
        "a",
        "--step",
        "3",
        "b",
        "--top-p",
        "-0.5",
        "--set",
        "k=v",
        "--set=k=w",
        "--prompt",
        "- a list",
        "--overwrite",
    ]
    expected = {"step": 3, "source": "b", "top_p": -0.5, "set": ["k=v", "k=w"], "prompt": "- a list", "overwrite": True}
    assert vars(parser().parse_args(typed)) == {"run": Path("a"), "dtype": "fp32", **expected}
    assert parser().parse_args(["a", "lang=en/x.csv", "--prompt=-x"]).prompt == "-x"
    assert parser().parse_args(["a", "--", "--odd"]).source == "--odd"
    assert parser().parse_args(["a", "--prompt", "b=c"]).prompt == "b=c"


def test_help_and_the_version_do_without_the_rest(capsys):
    for word in ("--help", "-h", "--version"):
        with pytest.raises(SystemExit) as ended:
            parser().parse_args(["--stpe", word])
        assert not ended.value.code
    told = capsys.readouterr().out
    assert told.count("example: python -m x runs/demo") == 2 and told.endswith(f"{version_text()}\n")
    assert version_text().startswith("headwater ") and " torch " in version_text()


@pytest.mark.parametrize("module", DOORS)
def test_every_door_refuses_in_the_same_words_and_without_torch(module, capsys):
    door = importlib.import_module(module)
    assert door.main(["runs/x", "--hepl"]) == 2
    assert capsys.readouterr().err.startswith("--hepl: no such option; did you mean --help? (options: ")
    assert isinstance(door.parser(), CommandParser)
    assert (DOORS[module] is None) or f"--{DOORS[module].replace('_', '-')}" in door.parser().options


@pytest.mark.slow
def test_no_parser_needs_torch():
    code = "import importlib, sys\n"
    code += f"for name in {list(DOORS)}: importlib.import_module(name).parser()\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_refusal_ends_a_command_with_2(capsys):
    assert command(parser(), print, ["a", "--step", "b"]) == 2
    assert capsys.readouterr() == (
        "",
        "--step b: must be a whole number, such as 3; for example: python -m x runs/demo\n",
    )
    with pytest.raises(SystemExit):
        command(argparse.ArgumentParser(), print, ["--x"])

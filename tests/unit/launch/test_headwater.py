"""The command `headwater`: which module each of its names stands for, and that it becomes `python -m` of it."""

import importlib.util
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from run_directories import make_run

from launch import completion, headwater
from launch.headwater import COMMANDS, MODULES, command_line
from pretrain.errors import ConfigError
from pretrain.settings.options import CommandParser, version_text

ROOT = Path(__file__).parents[3]
TO_COME = {"pretrain.evaluate"} if importlib.util.find_spec("pretrain.evaluate") is None else set()


def write_run(folder, program):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"defaults:\n- {program}_schema\n- _self_\n")
    (folder / "run.json").write_text("{}")
    return str(folder)


def test_every_name_is_a_module_that_runs():
    for module in MODULES - TO_COME:
        spec = importlib.util.find_spec(module)
        assert spec and spec.origin
        file = Path(spec.origin)
        file = file.with_name("__main__.py") if file.name == "__init__.py" else file
        assert 'if __name__ == "__main__":' in file.read_text(), module
    assert command_line("prepare", ["data=text"]) == ["pretrain.prepare", "data=text"]
    assert command_line("doctor", ["nproc=2", "--", "pretrain"]) == ["launch", "doctor", "nproc=2", "--", "pretrain"]
    assert command_line("finetune.report", ["x"]) == ["finetune.report", "x"]


def test_one_name_for_both_programs_looks_at_the_run(tmp_path, capsys):
    pretrained, tuned = (write_run(tmp_path / name, name) for name in ("pretrain", "finetune"))
    for name in ("evaluate", "report", "export"):
        assert command_line(name, [tuned, "--step", "3"]) == [f"finetune.{name}", tuned, "--step", "3"]
        assert command_line(name, ["--out", "x", tuned])[0] == f"finetune.{name}"
        assert command_line(name, [pretrained, tuned])[0] == f"pretrain.{name}"
        assert command_line(name, ["nowhere"]) == [f"pretrain.{name}", "nowhere"]
    assert capsys.readouterr().out == ""
    assert command_line("report", ["--help"]) == ["pretrain.report", "--help"]
    assert capsys.readouterr().out == "For runs of fine-tuning: headwater finetune.report --help\n\n"


def test_what_headwater_itself_says(capsys):
    assert headwater.main(["trian"]) == 2
    assert capsys.readouterr().err.startswith("trian: no such command; did you mean pretrain? (commands: prepare, ")
    assert headwater.main([]) == 2
    told = capsys.readouterr()
    assert headwater.main(["--help"]) == 0
    assert (told.out, told.err) == ("", capsys.readouterr().out) and all(
        f"\n  {name} " in told.err for name in COMMANDS
    )
    assert headwater.main(["--version"]) == 0
    assert capsys.readouterr().out == f"{version_text()}\n"


def started(words, before="", **env):
    """Run the installed command's entry point in a fresh process."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["headwater"]
    module, _, function = declared.partition(":")
    code = f"import os, signal, sys\nfrom {module} import {function}\n{before}\nsys.exit({function}())"
    line = [sys.executable, "-c", code, *words]
    return subprocess.run(line, env=os.environ | env, capture_output=True, text=True, timeout=120)


def test_a_signal_between_the_two_programs_reaches_the_second():
    before = "become = os.execv\nos.execv = lambda *words: (signal.raise_signal(15), become(*words))"
    ended = started(["runs", "."], before)
    assert (ended.returncode, ended.stdout) == (85, "")


@pytest.mark.slow
def test_it_is_what_python_m_is(tmp_path):
    run = str(make_run(tmp_path / "runs" / "a"))
    for words, module in (
        (["runs", str(tmp_path), "--json"], "pretrain.report.listing"),
        (["sample", run, "--max-tokens", "5", "--temperature", "0"], "pretrain.sample"),
        (["launch", "local", "nproc=2", "--", "pretrain", "optim.lrr=1"], "launch"),
    ):
        line = [sys.executable, "-m", module, *words[1:]]
        expected = subprocess.run(line, capture_output=True, text=True, timeout=120)
        ended = started(words)
        assert (ended.returncode, ended.stdout, ended.stderr) == (
            expected.returncode,
            expected.stdout,
            expected.stderr,
        ), words
        assert ended.stdout or ended.returncode == 2


def test_what_is_completed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tuned = Path(write_run(tmp_path / "runs" / "lrs" / "tuned", "finetune")).relative_to(tmp_path)

    def found(*words):
        return completion.candidates(words)

    assert set(found("")) == {*COMMANDS, "--help", "--version"} and found("pret") == ["pretrain"]
    assert set(found("finetune.")) == {name for name in MODULES if name.startswith("finetune.")}
    assert "optim.lr=" in found("pretrain", "optim.") and "data=text" in found("prepare", "data=")
    assert "task=qa" in found("launch", "local", "nproc=2", "--", "finetune", "task=")
    assert found("launch", "") == ["local", "slurm", "doctor", "--"] and found("doctor", "nproc=2", "") == ["--"]
    assert set(found("launch", "local", "--", "")) == {"pretrain", "finetune", "pretrain.prepare"}
    assert found("sample", "") == found("sample", "runs/") == [str(tuned)] == found("report", "runs/lrs/")
    assert found("export", str(tuned), "--d") == ["--dtype"]
    assert found("export", str(tuned), "--dtype", "b") == ["bf16"] and found("export", str(tuned), "--out", "") == []
    assert found("completion", "") == ["bash", "zsh", "fish"]
    with pytest.raises(ConfigError):
        found("trian", "")
    assert completion.main(["candidates", "--", "trian", ""]) == 2


@pytest.mark.parametrize("module", sorted(MODULES - TO_COME - set(completion.PROGRAMS) - {"launch", "launch.doctor"}))
def test_what_takes_options_has_a_parser_to_complete_them(module):
    door = importlib.import_module(completion._door(module))
    assert isinstance(door.parser(), CommandParser)


def test_bash_completes_words_that_it_splits(tmp_path):
    (tmp_path / "headwater").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m launch.headwater "$@"\n')
    (tmp_path / "headwater").chmod(0o755)

    def typed(line):
        setup = 'eval "$(headwater completion bash)"; compopt() { echo "$@"; }; COMP_LINE=$0; COMP_POINT=${#0}'
        code = f'{setup}; _headwater; printf "%s\\n" "${{COMPREPLY[@]}}"'
        paths = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(["bash", "-c", code, line], env=os.environ | paths, capture_output=True, text=True)
        return done.stdout.split("\n")[:-1]

    assert typed("headwater pretrain precision=") == ["bf16", "fp16", "fp32", "fp8"]
    assert typed("headwater pretrain optim.lr") == ["-o nospace", "optim.lr="]
    assert typed("headwater runs --so") == ["--sort"]
    assert typed("headwater trian ") == [""]


@pytest.mark.slow
def test_the_settings_that_are_completed_are_those_of_the_code():
    command = [sys.executable, "-c", "import settings; print(settings.words(), end='')"]
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT / "docs"), str(ROOT)])}
    written = subprocess.run(command, env=os.environ | paths, capture_output=True, text=True)
    assert written.stdout == completion.SETTINGS.read_text(), "run: python docs/settings.py"

"""What `python -m` makes of our modules: a command runs, anything else is refused and not silent."""

import sys
from pathlib import Path

import pytest

from pretrain.settings.modules import check_is_command

ROOT = Path(__file__).parents[4]
IMPORTED = [path for name in ("pretrain", "finetune", "launch") for path in (ROOT / name).rglob("*.py")]
NAMES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in IMPORTED}


def called(monkeypatch, *words):
    monkeypatch.setattr(sys, "orig_argv", ["python", *words])
    check_is_command()


@pytest.mark.parametrize("name", [name for name in NAMES if not name.endswith("__")])
def test_every_module_runs_or_is_refused(monkeypatch, capsys, name):
    if "start_command()  # before" in NAMES[name].read_text():
        called(monkeypatch, "-m", name, "--help")
        assert capsys.readouterr().err == ""
        return
    with pytest.raises(SystemExit, match="2"):
        called(monkeypatch, "-m", name, "--help")
    assert capsys.readouterr().err.startswith(
        f"{name}: holds code for commands, and does nothing by itself (commands: "
    )


def test_packages_and_other_ways_to_type_a_module(monkeypatch, capsys):
    for words in (
        ["-m", "pretrain"],
        ["-mlaunch"],
        ["-X", "dev", "-m", "finetune.report"],
        ["-m", "mine", "-m", "x"],
        ["file"],
    ):
        called(monkeypatch, *words)
    assert capsys.readouterr().err == ""
    for words in (["-B", "-mpretrain.run"], ["-m", "pretrain.train"]):
        with pytest.raises(SystemExit, match="2"):
            called(monkeypatch, *words)
        assert capsys.readouterr().err.startswith(f"{words[-1].removeprefix('-m')}: holds code for commands")
    with pytest.raises(SystemExit, match="2"):
        called(monkeypatch, "-m", "pretrain.smaple")
    assert capsys.readouterr().err.startswith("pretrain.smaple: no such module; did you mean pretrain.sample? (comm")


@pytest.mark.parametrize("package", ["pretrain", "finetune", "launch"])
def test_the_packages_look_when_python_looks_for_the_module(package, monkeypatch, capsys):
    code = compile((ROOT / package / "__init__.py").read_text(), package, "exec")
    monkeypatch.setattr(sys, "argv", ["-m"])
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", f"{package}.run"])
    with pytest.raises(SystemExit, match="2"):
        exec(code, {"__name__": package})
    assert f"{package}.run: " in capsys.readouterr().err

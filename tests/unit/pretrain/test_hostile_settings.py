"""Settings from elsewhere run nothing, read no secret and write nowhere: refused with 2, or data like any other."""

import shutil
import sys
from pathlib import Path

import pytest
from corpora import edit_json
from finetuned_runs import texts, trained
from forks import python
from hostile import FILES, FORGERIES, SECRET, WORDS, chosen, watched
from run_directories import make_run

import launch.__main__
import launch.modes
from finetune import evaluate, predict
from finetune import export as finetune_export
from finetune.config import FINETUNE
from launch.jobs import corpora_root, jobs_of
from launch.local import LOCAL
from pretrain import export, sample
from pretrain.compose import PRETRAIN, compose_run, hydra_command
from pretrain.errors import ConfigError

TUNING = ["task=classification", "init_from=x", "task.train=a", "task.validation=b"]
ATTEMPTS = [*([word] for word in WORDS), *(chosen(name) for name in FILES)]


@pytest.fixture(autouse=True)
def no_other_sinks(monkeypatch):
    """Sinks that another test of this process left at work are not these commands': they would end it at once."""
    monkeypatch.setattr("pretrain.compose.sinks_still_working", lambda: False)


def launched(mode, *words):
    sys.argv = ["launch", *words[: words.index("--")], *words[words.index("--") :]]
    sys.argv.insert(1, mode)
    launch.__main__.main()


# The doors that Hydra's words go through, as far as the point where work would begin.
DOORS = {
    "pretrain": lambda words: hydra_command(lambda cfg: None, PRETRAIN, words),
    "finetune": lambda words: hydra_command(lambda cfg: None, FINETUNE, [*TUNING, *words]),
    "prepare": lambda words: hydra_command(lambda cfg: corpora_root(words), PRETRAIN, words),
    "launch local": lambda words: launched("local", "nproc=1", "--", "pretrain", "experiment=demo", *words),
    "launch local of fine-tuning": lambda words: launched("local", "--", "finetune", *TUNING, *words),
    "launch local itself": lambda words: launched("local", *words, "--", "pretrain", "experiment=demo"),
    "launch slurm": lambda words: launched("slurm", "cluster=cpu", "dry_run=true", "--", "pretrain", *words),
    "launch slurm of a preparation": lambda words: launched(
        "slurm", "cluster=cpu", "dry_run=true", "parts=2", "--", "pretrain.prepare", *words
    ),
    "launch slurm itself": lambda words: launched("slurm", "dry_run=true", *words, "--", "pretrain"),
    "launch doctor": lambda words: launched("doctor", "cluster=cpu", "dry_run=true", "--", "pretrain", *words),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOSTILE_TOKEN", SECRET)
    monkeypatch.setattr(sys, "argv", [])
    nothing_runs = {"local": (LOCAL, lambda cfg, program: len(jobs_of(program)) * 0)}
    monkeypatch.setattr(launch.modes, "MODES", launch.modes.MODES | nothing_runs)
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def ends(call, *arguments) -> int:
    """Return the exit code of a command."""
    try:
        return call(*arguments) or 0
    except SystemExit as end:
        return end.code or 0


def check_refused(door, attempts, folder, capsys):
    with watched(folder) as new_files:
        for words in attempts:
            code = ends(DOORS[door], words)
            told = capsys.readouterr()
            assert code == 2, f"{words}: {code} {told.err}"
            assert told.err.strip() and "Traceback" not in told.err and SECRET not in told.out + told.err, words
            assert new_files() == [], words
    assert "canary" not in sys.modules


@pytest.mark.parametrize("door", DOORS)
def test_every_door_refuses_some(folder, capsys, door):
    assert len(ATTEMPTS) > 100
    place = list(DOORS).index(door)
    fitting = ATTEMPTS if "itself" not in door else [[word] for word in WORDS if "hydra" in word]
    check_refused(door, fitting[place :: 2 * len(DOORS)], folder, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("door", [door for door in DOORS if "itself" not in door])
def test_every_door_refuses_all(folder, capsys, door):
    check_refused(door, ATTEMPTS, folder, capsys)


@pytest.mark.parametrize(
    "value", ["$(touch written)", "`touch written`", "a; touch written", "a\ntouch written", "~", "!x"]
)
@pytest.mark.parametrize("door", ["pretrain", "launch slurm", "launch slurm of a preparation", "launch doctor"])
def test_a_text_is_a_text(folder, capsys, door, value):
    """The script that is printed names it; what bash makes of such a script is tested with scripts."""
    with watched(folder) as new_files:
        assert ends(DOORS[door], ["experiment=demo", f'run.root="{value}"']) == 0, capsys.readouterr().err
        assert new_files() == []


READERS = {
    "sample": lambda run, data: sample.main([run, "--max-tokens=1"]),
    "export": lambda run, data: export.main([run, "--overwrite"]),
    "finetune.predict": lambda run, data: predict.main([run, data]),
    "finetune.evaluate": lambda run, data: evaluate.main([run, data]),
    "finetune.export": lambda run, data: finetune_export.main([run, "--overwrite"]),
}
BLIND = ("sample", "export")  # they take the network from run.json, and of config.yaml the objective alone


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    records = [{"text": text, "label": label} for text, label in texts(6)]
    tuned, data = trained(tmp_path_factory.mktemp("theirs"), "gpt2", "classification", records)
    return {True: make_run(tmp_path_factory.mktemp("theirs") / "run"), False: tuned}, data


@pytest.mark.parametrize("reader", READERS)
def test_the_configuration_of_a_run_is_data(folder, capsys, runs, reader):
    (directories, data), blind = runs, reader in BLIND
    shutil.copytree(directories[blind], folder / "run")
    config = folder / "run" / "config.yaml"
    genuine = config.read_text()
    with watched(folder) as new_files:
        for name, (there, instead) in {"genuine": ("", ""), **FORGERIES}.items():
            assert there in genuine, name
            config.write_text(genuine.replace(there, instead, 1))
            code = ends(READERS[reader], "run", str(data))
            told = capsys.readouterr()
            assert code == 0 if name == "genuine" else code == 2 or (blind and code == 0), f"{name}: {code} {told.err}"
            assert "Traceback" not in told.err and SECRET not in told.out + told.err, name
            assert [file for file in new_files() if "/export" not in file] == [], name
    assert "canary" not in sys.modules


@pytest.mark.parametrize("name", FORGERIES)
def test_a_run_that_was_forged_does_not_compose(folder, runs, name):
    (directories, _), (there, instead) = runs, FORGERIES[name]
    shutil.copytree(directories[True], folder / "run")
    config = folder / "run" / "config.yaml"
    config.write_text(config.read_text().replace(there, instead, 1))
    with watched(folder), pytest.raises(ConfigError, match=r"config\.yaml"):
        compose_run(Path("run"))


def test_what_a_network_is_recorded_as_is_data_too(folder, runs, capsys):
    shutil.copytree(runs[0][True], folder / "run")
    edit_json(folder / "run" / "run.json", lambda record: record["network"].update(width="${oc.env:HOSTILE_TOKEN}"))
    assert sample.main([str(folder / "run")]) == 4
    assert "model.width is ${oc.env:HOSTILE_TOKEN}, its newest step was trained with 24" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["pretrain", *chosen("callbacks")],
        ["pretrain.prepare", *chosen("logging")],
        ["finetune", *TUNING, "+hydra.callbacks.x._target_=canary.Callback"],
        ["launch", "local", "--", "pretrain", *chosen("env")],
        ["launch", "slurm", "cluster=cpu", "dry_run=true", "--", "pretrain", *chosen("launcher")],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_so_it_is_in_processes_of_their_own(folder, words):
    with watched(folder) as new_files:
        done = python("-m", *words, cwd=folder)
        assert (done.returncode, new_files()) == (2, []), done.stderr
        assert "Traceback" not in done.stderr and SECRET not in done.stdout + done.stderr

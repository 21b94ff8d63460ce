"""`python -m launch`: what its modes make of the words that they are given."""

import re
import shlex
import sys

import pytest

import launch.__main__
import launch.modes
from launch.jobs import jobs_of
from launch.slurm.cluster import ClusterConfig
from launch.slurm.submit import SlurmConfig, examine_nodes, submit_runs
from pretrain.errors import ConfigError

DEMO = ["pretrain", "experiment=demo"]


@pytest.fixture(autouse=True)
def no_other_sinks(monkeypatch):
    """Sinks that another test of this process left at work are not these commands': they would end it at once."""
    monkeypatch.setattr("pretrain.compose.sinks_still_working", lambda: False)


def called(monkeypatch, *words):
    """Call the launcher; return its exit code."""
    monkeypatch.setattr(sys, "argv", ["launch", *words])
    with pytest.raises(SystemExit) as ended:
        launch.__main__.main()
    return ended.value.code


def test_a_program_without_its_dashes(monkeypatch, capsys):
    assert called(monkeypatch, "local", "nproc=2", *DEMO) == 2
    assert capsys.readouterr().err == "pretrain: put -- before the program\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lokal", "nproc=2"], "lokal: no such mode; did you mean local? (modes: local, slurm, doctor; --help shows"),
        (["--nproc", "2"], "--nproc: no such mode (modes: local, slurm, doctor"),
        ([], "`python -m launch MODE SETTINGS -- PROGRAM SETTINGS`"),
    ],
)
def test_an_unknown_mode_is_refused_by_name(monkeypatch, capsys, words, said):
    assert called(monkeypatch, *words) == 2
    assert capsys.readouterr().err.startswith(said)


def test_a_secret_reaches_no_script(monkeypatch, capsys):
    words = ["slurm", "cluster=cpu", "dry_run=true", "--", *DEMO]
    assert called(monkeypatch, *words, "run.root='https://me:S3CRET@host'") == 2
    told = capsys.readouterr()
    assert told.err.startswith("run.root=<redacted>: a secret") and "S3CRET" not in told.out + told.err
    monkeypatch.setenv("PLACE", "https://me:S3CRET@host")
    assert called(monkeypatch, *words, "run.root=${oc.env:PLACE}") in (0, None)
    told = capsys.readouterr()
    assert "'run.root=${oc.env:PLACE}'" in told.out


def test_a_preparation_has_the_name_that_headwater_gives_it(monkeypatch, capsys):
    words = ["slurm", "cluster=cpu", "dry_run=true", "--"]
    scripts = []
    for program in ("prepare", "pretrain.prepare"):
        assert called(monkeypatch, *words, program, "experiment=demo") in (0, None)
        scripts.append(capsys.readouterr().out)
    assert scripts[0] == scripts[1] and " pretrain.prepare experiment=demo" in scripts[0]


@pytest.mark.parametrize("mode", ["local", "slurm", "doctor"])
def test_help_names_the_mode(monkeypatch, capsys, mode):
    assert called(monkeypatch, mode, "--help") == 0
    assert mode in capsys.readouterr().out.splitlines()[0]


def test_the_doctor_looks_at_the_first_run_of_a_sweep(monkeypatch):
    looked = []
    monkeypatch.setattr(launch.modes, "examine_here", lambda cfg, words: looked.append(words))
    called(monkeypatch, "doctor", "nproc=2", "--", *DEMO, "seed=7,8", "optim.lr=1e-3")
    assert looked == [[*DEMO, "seed=7", "optim.lr=1e-3"]]


@pytest.fixture
def sbatch(monkeypatch, tmp_path):
    """A command of that name, in a folder of its own, that does what it is told."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def does(what):
        (tmp_path / "sbatch").write_text(f"#!/bin/sh\n{what}\n")
        (tmp_path / "sbatch").chmod(0o755)

    return does


def test_on_nodes_it_does_so_too_and_says_what_it_found(sbatch, tmp_path, capsys):
    sbatch("echo 1 failed > page.txt; exit 3")
    [job, _] = jobs_of([*DEMO, "run.root=there", "seed=7,8"])
    assert examine_nodes(SlurmConfig(cluster=ClusterConfig()), job) == 3
    assert capsys.readouterr().out == "1 failed\n\n"
    program = "program=(launch.doctor pretrain experiment=demo run.root=there seed=7 "
    assert program in (tmp_path / "there/doctor/slurm/job.sh").read_text()


def test_where_slurm_refuses_the_doctor_its_words_are_told(sbatch):
    sbatch("echo invalid partition >&2; exit 1")
    with pytest.raises(ConfigError, match="did not run: invalid partition; see the settings of the cluster"):
        examine_nodes(SlurmConfig(cluster=ClusterConfig()), *jobs_of(DEMO))


def test_a_fresh_run_is_one_at_submission_and_resumes_afterwards(sbatch, tmp_path):
    sbatch("echo 7")
    jobs = jobs_of([*DEMO, "run.root=there", "run.fresh=true"])
    cfg = SlurmConfig(cluster=ClusterConfig())
    submit_runs(cfg, jobs)
    [line] = re.findall(r"program=\((.*)\)", (tmp_path / "there/demo/slurm/job.sh").read_text())
    assert not jobs_of(shlex.split(line))[0].cfg.run.fresh
    (tmp_path / "there/demo/run.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"run.fresh=true: there/demo holds a run"):
        submit_runs(cfg, jobs)

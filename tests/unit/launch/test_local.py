"""Runs of a sweep in turn on this machine: which of them start, with what, and the code that stands for all."""

import os
import sys
from types import SimpleNamespace

import pytest

from launch import local
from launch.local import LocalConfig, run_local
from launch.ranks import Outcome
from pretrain.errors import ConfigError
from pretrain.train.run_dir.base import LOG_LEVEL


@pytest.fixture
def row(monkeypatch, tmp_path):
    """Return what runs as many jobs as there are exit codes, and what was asked of ranks and of the table."""
    for name in ("WANDB_RUN_GROUP", LOG_LEVEL):
        monkeypatch.setenv(name, "")  # so that what a run sets does not stay
        monkeypatch.delenv(name)

    def call(*codes, cfg=None):
        started, tables, checked = [], [], []
        jobs = [
            SimpleNamespace(
                program="pretrain",
                overrides=[f"seed={number}"],
                cfg=SimpleNamespace(
                    check_start=lambda **machine: checked.append(machine), run=SimpleNamespace(fresh=False)
                ),
                name=f"run-{number}",
                directory=tmp_path / f"run-{number}",
                sweep="run",
                point=f"seed={number}" if len(codes) > 1 else "",
            )
            for number in range(len(codes))
        ]
        left = iter(codes)

        def outcome_of(command, **options):
            assert len(checked) == len(codes), "all are checked before the first one starts"
            started.append((command, options | {"level": os.environ.get(LOG_LEVEL)}))
            return Outcome(next(left))

        monkeypatch.setattr(local, "outcome_of", outcome_of)
        monkeypatch.setattr(local, "table_of", lambda runs, codes: tables.append((runs, list(codes))) or "the table")
        code = run_local(cfg or LocalConfig(nproc=3), jobs)
        assert checked == [{"ranks": (cfg or LocalConfig(nproc=3)).ranks, "device_type": "cpu"}] * len(codes)
        return code, started, tables

    return call


@pytest.mark.parametrize(
    ("codes", "code", "number"),
    [((0,), 0, 1), ((5,), 5, 1), ((0, 0, 0), 0, 3), ((0, 3, 5), 3, 3), ((4, 0, 0), 4, 3), ((0, 85, 0), 85, 2)],
)
def test_the_first_failure_counts_and_a_stop_ends_the_row(row, codes, code, number):
    found, started, tables = row(*codes)
    assert (found, len(started)) == (code, number)
    assert [codes for _, codes in tables] == ([list(codes[:number])] if len(codes) > 1 else [])
    assert all(len(runs) == len(codes) for runs, _ in tables)


def test_each_run_has_its_settings_ranks_port_and_place_for_logs(row, tmp_path):
    _, started, _ = row(0, 0, cfg=LocalConfig(nproc=2, port=4242))
    for number, (command, options) in enumerate(started):
        assert command == [sys.executable, "-m", "pretrain", f"seed={number}"]
        assert (options["count"], options["node"].port, options["node"].of) == (2, 4242, 1)
        assert options["logs"] == tmp_path / f"run-{number}" / "ranks"


def test_the_first_run_of_a_sweep_says_what_it_will_do_and_the_others_which_they_are(row, capsys):
    _, started, _ = row(0, 5, 0)
    assert [options["level"] for _, options in started] == [None, "WARNING", "WARNING"]
    lines = [f"run {number + 1} of 3: run-{number} (seed={number})" for number in range(3)]
    assert capsys.readouterr() == ("\n".join([*lines, "the table", ""]), "")


def test_a_sweep_that_is_stopped_says_where_it_goes_on(row, capsys):
    row(0, 85, 0)
    assert capsys.readouterr().err == "stopped in run 2 of 3; the same command goes on from there\n"


def test_runs_of_a_sweep_are_one_group_unless_there_is_one(row, monkeypatch):
    row(0)
    assert "WANDB_RUN_GROUP" not in os.environ
    row(0, 0)
    assert os.environ["WANDB_RUN_GROUP"] == "run"
    monkeypatch.setenv("WANDB_RUN_GROUP", "own")
    row(0, 0)
    assert os.environ["WANDB_RUN_GROUP"] == "own"


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({"nproc": 0}, "nproc=0"),
        ({"port": 80}, "port=80"),
        ({"max_restarts": -1}, "max_restarts=-1"),
        ({"nproc": 2, "min_nproc": 3, "max_restarts": 1}, "min_nproc=3: from 1 to the 2 ranks"),
        ({"nproc": 2, "min_nproc": 1}, "min_nproc=1: .* set max_restarts"),
    ],
)
def test_numbers_that_cannot_be_are_refused(fields, key):
    with pytest.raises(ConfigError, match=key):
        LocalConfig(**fields)

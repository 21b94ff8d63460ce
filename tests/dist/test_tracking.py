"""W&B in whole runs: one for all ranks, and none that a dead server holds up."""

import socket

import pytest
from ranks import column, run, tiny
from wandb_server import losses, of_kind, offline_files, rows

KEY = "f00d" * 10


@pytest.mark.slow
def test_four_ranks_make_one_run_directory_with_one_wandb_run(place, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    patient = ["tracker=wandb", "tracker.finish_timeout_s=120", "train.micro_batch_size=2"]
    run(*tiny("mirrored", *patient), ranks=4, cwd=place)
    directory = place / "runs" / "mirrored"
    assert sorted(path.parent for path in place.rglob("config.yaml") if "mirrored" in str(path)) == [directory]
    [file] = offline_files(directory)
    history = losses(rows(file))
    assert {step: loss for split, step, loss in history if split == "train"} == column(directory, "loss")
    assert {step: loss for split, step, loss in history if split != "train"} == column(directory, "loss", "validation")
    steps = {path.as_uri() for path in (directory / "checkpoints").iterdir()}
    named = {entry.ref.rpartition("/")[0] for logged in of_kind(file, "artifact") for entry in logged.manifest.contents}
    assert steps <= named, "every checkpoint on disk is known"


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_server_that_never_answers_neither_holds_a_run_up_nor_outlives_it(place, monkeypatch, ranks):
    """Whoever waited for W&B's own limits here would wait for hours."""
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, never answers
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_MODE", "online")
        name = f"unanswered-{ranks}"
        limits = ["tracker.init_timeout_s=9999", "tracker.finish_timeout_s=1", "train.micro_batch_size=4"]
        # W&B's process has the run's output open: reading it to its end waits for that process, too.
        done = run(*tiny(name, "tracker=wandb", *limits), ranks=ranks, cwd=place)
    told = [line for line in (done.stdout + done.stderr).splitlines() if "W&B" in line or "wandb" in line]
    assert len(told) == 1 and "W&B did not finish within 1 s" in told[0], told
    assert len(column(place / "runs" / name, "loss")) == 24
    files = [path for path in (place / "runs" / name).rglob("*") if path.is_file()]
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    assert KEY not in done.stdout + done.stderr

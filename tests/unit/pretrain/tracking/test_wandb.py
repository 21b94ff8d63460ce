"""W&B, really run: offline files read back against metrics.jsonl, and servers that answer, fall silent or never did."""

import hashlib
import json
import logging
import os
import signal
import socket
from contextlib import suppress
from pathlib import Path

import pytest
from ranks import wait_until
from tracked import SECRET, build, records, run, truth
from wandb_server import WandbServer, losses, of_kind, offline_files, rows

from pretrain.tracking.base import Sample
from pretrain.tracking.wandb_sink import WandbConfig, WandbMode, persistent_id

PATIENT = {"init_timeout_s": 120.0, "finish_timeout_s": 120.0}  # on a machine that does much else


@pytest.fixture
def server(monkeypatch):
    served = WandbServer()
    monkeypatch.setenv("WANDB_BASE_URL", served.url)
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setenv("WANDB_MODE", "online")
    yield served
    served.shutdown()
    served.server_close()


def holding(folder, text):
    return [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


def test_offline_history_equals_metrics_jsonl(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")  # the field left empty follows the environment
    run(WandbConfig(project="p", tags=["t"], **PATIENT), tmp_path, 0, 6, exit_code=85)
    run(WandbConfig(project="p", wandb_mode=WandbMode.offline, **PATIENT), tmp_path, 4, 9)
    files = offline_files(tmp_path)
    assert len(files) == 2
    history = {(split, step): loss for file in files for split, step, loss in losses(rows(file))}
    assert history == truth(tmp_path)
    assert [exit.exit_code for file in files for exit in of_kind(file, "exit")] == [85, 0]
    runs = [run for file in files for run in of_kind(file, "run")]
    assert {run.run_id for run in runs} == {persistent_id(tmp_path, "my run")}
    assert runs[0].display_name == "my run"
    assert ("*", "train/step") in {
        (metric.glob_name or metric.name, metric.step_metric) for metric in of_kind(files[0], "metric")
    }
    config = {update.key: json.loads(update.value_json) for update in runs[0].config.update}
    assert config["optim"] == {"lr": 1e-3} and config["hub"] == {"token": "<redacted>"}
    assert of_kind(files[0], "stats"), "W&B measures the system, too"
    assert not holding(tmp_path, SECRET)


@pytest.mark.parametrize(
    ("fields", "group", "tags"),
    [
        ({}, "sweep 7", ["from", "outside"]),
        ({"group": "mine"}, "mine", ["from", "outside"]),
        ({"tags": ["own"]}, "sweep 7", ["own"]),
    ],
)
def test_group_and_tags_come_from_the_environment_unless_they_are_set(tmp_path, monkeypatch, fields, group, tags):
    monkeypatch.setenv("WANDB_RUN_GROUP", "sweep 7")
    monkeypatch.setenv("WANDB_TAGS", "from,outside")
    run(WandbConfig(wandb_mode=WandbMode.offline, **PATIENT, **fields), tmp_path, 0, 1)
    [file] = offline_files(tmp_path)
    [recorded] = of_kind(file, "run")
    assert recorded.run_group == group and list(recorded.tags) == tags


def test_checkpoints_are_artifacts_by_reference(tmp_path):
    steps = [tmp_path / "checkpoints" / f"step-{number}" for number in (3, 6)]
    for step in steps:
        step.mkdir(parents=True)
        (step / "manifest.json").write_text(step.name)
        (step / "fragments.safetensors").write_bytes(b"WEIGHTS" * 100)
    tracker = build(WandbConfig(wandb_mode=WandbMode.offline, **PATIENT), tmp_path, 0, 6)
    tracker.saved(3, steps[0], True)
    tracker.saved(5, tmp_path / "checkpoints" / "step-5", False)  # retention was faster
    tracker.saved(6, steps[1], False)
    tracker.close(0)
    [file] = offline_files(tmp_path)
    first, last = of_kind(file, "artifact")
    assert (first.type, first.name) == ("model", f"checkpoint-{persistent_id(tmp_path, 'my run')}")
    assert set(first.aliases) == {"latest", "step-3", "best"} and set(last.aliases) == {"latest", "step-6"}
    digest = hashlib.sha256(b"step-3").hexdigest()
    assert json.loads(first.metadata) == {"step": 3, "manifest_sha256": digest, "best": True}
    assert {entry.ref for entry in first.manifest.contents} == {path.as_uri() for path in steps[0].iterdir()}
    assert not any(entry.local_path for entry in first.manifest.contents), "nothing to upload"
    assert not holding(tmp_path / "wandb", "WEIGHTS")


def test_samples_are_pages_in_which_no_markup_is_read(tmp_path):
    tracker = build(WandbConfig(wandb_mode=WandbMode.offline, **PATIENT), tmp_path, 0, 6)
    tracker.sampled(4, [Sample("The <b>", "time & é\nyear"), Sample("", "c")])
    tracker.close(0)
    [file] = offline_files(tmp_path)
    [row] = rows(file)
    page = file.parent / "files" / row["samples/path"]
    assert (row["train/step"], row["samples/_type"]) == (4, "html-file")
    block = '<div style="white-space: pre-wrap">{}</div>'
    texts = ["<b>The &lt;b&gt;</b>time &amp; é\nyear", "<b></b>c"]
    assert page.read_text(encoding="utf-8") == "\n<hr>\n".join(map(block.format, texts))


def test_a_server_gets_every_row_once_and_no_more_of_a_resumed_run(tmp_path, server):
    run(WandbConfig(**PATIENT), tmp_path, 0, 6, exit_code=85)
    assert {(split, step): loss for split, step, loss in losses(server.rows)} == truth(tmp_path)
    run(WandbConfig(**PATIENT), tmp_path, 6, 9)
    assert {(split, step): loss for split, step, loss in losses(server.rows)} == truth(tmp_path)
    assert len(server.rows) == len(truth(tmp_path)) == 13
    assert not holding(tmp_path, SECRET)


def warnings_of(caplog):
    ours = [record for record in caplog.records if record.name.startswith("pretrain")]
    return [record.getMessage() for record in ours if record.levelno >= logging.WARNING]


# Before the tests of silent servers: W&B's process may still be waiting for one of them.
def test_a_wandb_process_that_is_killed_costs_one_warning(tmp_path, caplog):
    tracker = build(WandbConfig(wandb_mode=WandbMode.offline, init_timeout_s=120, finish_timeout_s=10), tmp_path, 0, 6)
    wait_until(lambda: offline_files(tmp_path))
    for name in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if str(os.getpid()).encode() in name.read_bytes().split(b"\0") and b"wandb-core" in name.read_bytes():
                os.kill(int(name.parent.name), signal.SIGKILL)
    for record in records(1, 6):
        tracker.log(record)
    tracker.close(0)
    assert len(warnings_of(caplog)) == 1
    assert len(truth(tmp_path)) == 9


def test_a_server_that_dies_in_mid_run_costs_one_warning(tmp_path, server, caplog):
    tracker = build(WandbConfig(init_timeout_s=120, finish_timeout_s=2), tmp_path, 0, 6)
    wait_until(lambda: "UpsertBucket" in server.asked)
    server.silent.set()
    for record in records(1, 6):
        tracker.log(record)
    tracker.close(0)
    [warning] = warnings_of(caplog)
    assert warning.startswith("W&B ") and "report --sync" in warning and SECRET not in warning
    assert len(truth(tmp_path)) == 9


def test_a_silent_server_costs_one_warning(tmp_path, monkeypatch, caplog):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, never answers
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", SECRET)
        run(WandbConfig(wandb_mode=WandbMode.online, init_timeout_s=1, finish_timeout_s=120), tmp_path, 0, 200)
    [warning] = warnings_of(caplog)
    assert warning.startswith("W&B stopped: ") and "report --sync" in warning and SECRET not in warning
    assert len(truth(tmp_path)) == 300
    assert not holding(tmp_path, SECRET)


def test_the_id_is_one_per_run_directory(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir(), second.mkdir()
    one = persistent_id(first, "söme run/1")
    assert one == persistent_id(first, "söme run/1") and one.startswith("s-me-run-1-")
    assert one != persistent_id(second, "söme run/1")

"""W&B and TensorBoard, really run, and read back with their own formats against metrics.jsonl."""

import json
import os
import socket
import struct
import subprocess
import sys
import textwrap

import pytest

from pretrain.tracking.tensorboard_sink import TensorBoardConfig
from pretrain.tracking.wandb_sink import WandbConfig, WandbMode, persistent_id

SECRET = "f00d" * 10
PATIENT = {"init_timeout_s": 120.0, "finish_timeout_s": 120.0}  # on a machine that does much else


def records(first, last):
    for step in range(first, last + 1):
        yield {"step": step, "split": "train", "loss": 10 / 3 / step, "tokens": step * 64, "lr": 1e-3, "mfu": None}
        if step % 2 == 0:
            yield {"step": step, "split": "validation", "loss": 7 / step, "perplexity": 2.0, "tokens": step * 64}


def run(config, folder, start, last, exit_code=0):
    """Log records as a run that resumes at `start` would."""
    tracker = config.build(
        run_dir=folder,
        run_name="my run",
        total_steps=last,
        config={"optim": {"lr": 1e-3}, "hub": {"token": SECRET}},
        start_step=start,
    )
    for record in records(start + 1, last):
        tracker.log(record)
    tracker.close(exit_code)


def truth(folder):
    """Return {(split, step): loss} of metrics.jsonl."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {(line["split"], line["step"]): line["loss"] for line in lines}


def test_tensorboard_events_equal_metrics_jsonl_after_a_kill(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(TensorBoardConfig(), tmp_path, 0, 7)  # killed after step 7, with a checkpoint at step 4
    run(TensorBoardConfig(), tmp_path, 4, 9)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == sorted(
        ["train/loss", "train/tokens", "train/lr", "eval/loss", "eval/perplexity", "eval/tokens"]
    )
    read = {("train", event.step): event.value for event in events.Scalars("train/loss")}
    read |= {("validation", event.step): event.value for event in events.Scalars("eval/loss")}
    assert read == pytest.approx(truth(tmp_path), rel=1e-7)  # event files hold float32
    assert len(events.Scalars("train/loss")) == 9


def wandb_records(path):
    """Yield the protobuf records of a .wandb file, framed as LevelDB's log: blocks of 32 KiB, CRC, length, kind."""
    from wandb.proto.wandb_internal_pb2 import Record

    data = path.read_bytes()
    assert data[:4] == b":W&B"
    at, whole = 7, b""
    while at < len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
        _, length, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            yield Record.FromString(whole)
            whole = b""


@pytest.fixture
def wandb_service():
    """End W&B's service process, which would otherwise be shared with every process that a later test starts."""
    yield
    import wandb

    wandb.teardown()


@pytest.mark.usefixtures("wandb_service")
def test_wandb_offline_history_equals_metrics_jsonl(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")  # the field left empty follows the environment
    run(WandbConfig(project="p", tags=["t"], **PATIENT), tmp_path, 0, 6, exit_code=85)
    run(WandbConfig(project="p", wandb_mode=WandbMode.offline, **PATIENT), tmp_path, 4, 9)
    history, runs, exits, metrics = {}, [], [], set()
    files = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    assert len(files) == 2
    for file in files:
        for record in wandb_records(file):
            kind = record.WhichOneof("record_type")
            if kind == "history":
                row = {(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in record.history.item}
                if "train/loss" in row:
                    history["train", row["train/step"]] = row["train/loss"]
                else:
                    history["validation", row["train/step"]] = row["eval/loss"]
            elif kind == "run":
                runs.append(record.run)
            elif kind == "exit":
                exits.append(record.exit.exit_code)
            elif kind == "metric":
                metrics.add((record.metric.glob_name or record.metric.name, record.metric.step_metric))
    assert history == truth(tmp_path)
    assert exits == [85, 0]
    assert {run.run_id for run in runs} == {persistent_id(tmp_path, "my run")}
    assert runs[0].display_name == "my run"
    assert ("*", "train/step") in metrics
    config = {update.key: json.loads(update.value_json) for update in runs[0].config.update}
    assert config["optim"] == {"lr": 1e-3} and config["hub"] == {"token": "<redacted>"}
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


BLACK_HOLE = """
    import logging, pathlib, sys
    from pretrain.tracking.wandb_sink import WandbConfig, WandbMode
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    config = WandbConfig(wandb_mode=WandbMode.online, init_timeout_s=3, finish_timeout_s=20)
    tracker = config.build(run_dir=pathlib.Path(sys.argv[1]), run_name="r", total_steps=200, config={})
    for step in range(1, 201):
        tracker.log({"step": step, "split": "train", "loss": 1 / step, "tokens": step})
    print("training is over", flush=True)
    tracker.close(0)
"""


def test_a_silent_wandb_server_costs_one_warning(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, never answers
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        environment = {**os.environ, "WANDB_BASE_URL": url, "WANDB_API_KEY": SECRET, "WANDB_MODE": "online"}
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(BLACK_HOLE), str(tmp_path)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    warnings = [line for line in done.stderr.splitlines() if line.startswith("pretrain")]
    assert len(warnings) == 1 and "recording offline" in warnings[0], done.stderr
    assert SECRET not in done.stderr + done.stdout
    assert len(truth(tmp_path)) == 200
    (file,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    assert sum(record.WhichOneof("record_type") == "history" for record in wandb_records(file)) == 200


def test_the_wandb_id_is_one_per_run_directory(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir(), second.mkdir()
    one = persistent_id(first, "söme run/1")
    assert one == persistent_id(first, "söme run/1") and one.startswith("s-me-run-1-")
    assert one != persistent_id(second, "söme run/1")

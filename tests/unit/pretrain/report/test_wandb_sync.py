"""`report --sync`: what a run recorded, sent to W&B afterwards, against metrics.jsonl."""

import base64
import hashlib
import json
import math
import re

import pytest
from tracked import SECRET, records
from wandb_server import WandbServer, losses, of_kind, offline_files, rows

from finetune.report.__main__ import main as finetune_report
from pretrain.report.__main__ import main as pretrain_report
from pretrain.tracking.wandb_sink import persistent_id

CONFIG = """
defaults: [{schema}, _self_]
run: {{name: sent}}
optim: {{lr: 0.001}}
hub: {{token: {secret}}}
tracker: {{project: mine, entity: me, group: sweep 1, tags: [a, b], wandb_mode: disabled}}
"""


def make_run(folder, last=6, schema="pretrain_schema"):
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(CONFIG.format(schema=schema, secret=SECRET))
    (folder / "run.json").write_text(json.dumps({"name": "sent", "exit": 5}))
    write(folder, records(1, last))
    return folder


def write(folder, lines):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def server(monkeypatch):
    served = WandbServer()
    for name, value in {"BASE_URL": served.url, "API_KEY": SECRET, "MODE": "online"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    yield served
    served.shutdown()
    served.server_close()


def test_offline_the_file_equals_metrics_jsonl(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = make_run(tmp_path / "sent")
    write(run, [*records(1, 6), {"step": 7, "split": "train", "loss": "NaN", "tokens": 448, "lr": None}])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "spl')  # killed while it wrote
    assert pretrain_report([str(run), "--sync"]) == 0
    [file] = offline_files(run)
    assert capsys.readouterr().out == f"{file.parent}\n"
    *whole, last = losses(rows(file))
    assert whole == [(line["split"], line["step"], line["loss"]) for line in records(1, 6)]
    assert last[:2] == ("train", 7) and math.isnan(float(last[2]))
    assert rows(file)[0].items() >= {"train/step": 1, "train/tokens": 64, "train/lr": 1e-3}.items()
    [recorded] = of_kind(file, "run")
    assert (recorded.run_id, recorded.display_name) == (persistent_id(run, "sent"), "sent")
    assert (recorded.project, recorded.entity, recorded.run_group) == ("mine", "me", "sweep 1")
    assert list(recorded.tags) == ["a", "b"]
    config = {update.key: json.loads(update.value_json) for update in recorded.config.update}
    assert config["optim"] == {"lr": 1e-3} and config["hub"] == {"token": "<redacted>"} and "defaults" not in config
    assert [exit.exit_code for exit in of_kind(file, "exit")] == [5]


def test_a_run_of_fine_tuning_and_another_project(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = make_run(tmp_path / "sent", schema="finetune_schema")
    assert pretrain_report([str(run), "--sync"]) == 2
    assert "a run of python -m finetune" in capsys.readouterr().err
    assert finetune_report([str(run), "--sync", "--project", "other"]) == 0
    [file] = offline_files(run)
    assert [recorded.project for recorded in of_kind(file, "run")] == ["other"]
    assert len(rows(file)) == 9


def test_checkpoints_on_disk_and_the_export_are_referred_to(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = make_run(tmp_path / "sent")
    for number in (3, 6):
        step = run / "checkpoints" / f"step-{number:08d}"
        step.mkdir(parents=True)
        (step / "manifest.json").write_text("{}")
        (step / "state.json").write_text(json.dumps({"step": number, "best": [3, 0.5]}))
    (run / "export").mkdir()
    (run / "export" / "model.safetensors").write_bytes(b"WEIGHTS")
    (run / "export" / "export.json").write_text(json.dumps({"run": "sent", "step": 3, "dtype": "fp32"}))
    assert pretrain_report([str(run), "--sync"]) == 0
    [file] = offline_files(run)
    *checkpoints, export = of_kind(file, "artifact")
    assert [set(logged.aliases) for logged in checkpoints] == [{"latest", "step-3", "best"}, {"latest", "step-6"}]
    assert export.name == f"export-{persistent_id(run, 'sent')}" and json.loads(export.metadata)["step"] == 3
    weights = (run / "export" / "model.safetensors").as_uri()
    [entry] = [entry for entry in export.manifest.contents if entry.ref == weights]
    assert entry.digest == base64.b64encode(hashlib.md5(b"WEIGHTS").digest()).decode() and not entry.local_path


def test_a_server_is_not_sent_what_it_has(tmp_path, server):
    run = make_run(tmp_path / "sent", last=4)
    assert pretrain_report([str(run), "--sync"]) == 0
    assert len(server.rows) == 6
    make_run(run, last=9)  # the run went on, and its mirror did not
    for _ in range(2):
        assert pretrain_report([str(run), "--sync"]) == 0
        assert losses(server.rows) == [(line["split"], line["step"], line["loss"]) for line in records(1, 9)]


def test_a_server_that_refuses_is_told_by_name(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens
    run = make_run(tmp_path / "sent")
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("wandb_mode: disabled", "init_timeout_s: 1"))
    assert pretrain_report([str(run), "--sync"]) == 2
    told = capsys.readouterr().err
    assert "W&B did not start" in told and "WANDB_MODE=offline" in told and SECRET not in told


def changed(run, old, new):
    config = run / "config.yaml"
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "tags: [a, b]",
            f"tags: [a, {'x' * 65}]",
            r"tracker\.tags\[1\]='x+': has 65 characters, and .* 1 to 64;",
        ),
        ("project: mine", "project: a/b", r"tracker\.project='a/b': W&B refuses '/'"),
        ("tags: [a, b]", "tags: 5", r"config\.yaml: .*; mend it there"),
        ("tags: [a, b]", "init_timeout_s: soon", r"config\.yaml: .*'soon'"),
    ],
)
def test_settings_that_cannot_be_sent_are_named(tmp_path, monkeypatch, capsys, old, new, told):
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = make_run(tmp_path / "sent")
    changed(run, old, new)
    assert pretrain_report([str(run), "--sync"]) == 2
    assert re.search(told, capsys.readouterr().err)
    assert not (run / "wandb").exists()


@pytest.mark.parametrize("held", [b"", b"\xff", b"a/b", b"x" * 65])
def test_a_damaged_id_is_named(tmp_path, monkeypatch, capsys, held):
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = make_run(tmp_path / "sent")
    (run / "wandb-id.txt").write_bytes(held)
    assert pretrain_report([str(run), "--sync"]) == 2
    assert "wandb-id.txt: " in capsys.readouterr().err


def test_an_export_of_something_else_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = make_run(tmp_path / "sent")
    (run / "export").mkdir()
    (run / "export" / "export.json").write_text("[1]")
    assert pretrain_report([str(run), "--sync"]) == 2
    assert "export.json: not readable" in capsys.readouterr().err


def test_a_key_that_is_refused_is_told_and_not_repeated(tmp_path, server, capsys):
    server.refuses = True
    run = make_run(tmp_path / "sent")
    changed(run, "tags: [a, b]", "init_timeout_s: 20")
    assert pretrain_report([str(run), "--sync"]) == 2
    told = capsys.readouterr().err
    assert "W&B did not start" in told and "WANDB_API_KEY" in told and SECRET not in told


def test_a_place_that_is_taken_is_no_traceback(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = make_run(tmp_path / "sent")
    (run / "wandb").write_text("")
    assert pretrain_report([str(run), "--sync"]) == 2
    assert "W&B did not start" in capsys.readouterr().err


def test_nothing_is_said_to_be_sent_where_nothing_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert pretrain_report([str(make_run(tmp_path / "sent")), "--sync"]) == 2
    assert "WANDB_MODE=disabled: nothing would be sent" in capsys.readouterr().err

"""The list of runs: every state a run can be in, damaged directories among them."""

import json
import os
import shutil
import signal
import time

import pytest
from finetuned_runs import trained
from forks import Forked
from ranks import wait_until

from pretrain.errors import ConfigError
from pretrain.files import sealed
from pretrain.report import listing
from pretrain.report.listing import runs
from pretrain.train.run_dir.base import RunConfig, RunDirectory

RECORD = {"step": 30, "split": "validation", "tokens": 9, "loss": 2.5, "f1": 0.75}


def make_run(folder, *, exit=0, program="pretrain", **facts):
    """Write a directory as a run leaves it: 40 of 50 steps logged, 35 of them saved."""
    (folder / "checkpoints" / "step-00000035").mkdir(parents=True)
    (folder / "checkpoints" / "step-00000035" / "manifest.json").write_text("x" * 1000)
    (folder / "lock").write_text("pid 5 on host a since today\n")
    (folder / "log.txt").write_text("")
    (folder / "run.json").write_bytes(sealed({"name": folder.name, "exit": exit, **facts}))
    (folder / "config.yaml").write_text(f"defaults:\n- {program}_schema\ntrain:\n  epochs: 2\n  steps: 50\n")
    lines = [{"step": step, "split": "train", "loss": 100.0 / step} for step in (10, 20, 30, 40)]
    lines += [RECORD | {"step": step, "loss": loss} for step, loss in ((10, 2.5), (20, 1.5), (30, "NaN"))]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 50, "spl')
    return folder


def only(folder):
    [run] = runs(folder)
    return run


def test_real_runs_of_both_programs(tmp_path):
    records = [{"text": word, "label": word[0]} for word in ("one", "two", "three", "four", "five", "six")]
    tuned, _ = trained(tmp_path, "gpt2", "classification", records)
    listed = {run.name: run for run in runs(tmp_path)}
    assert listed.keys() == {"source", "tuned"}
    run = listed["tuned"]
    record = [json.loads(line) for line in (tuned / "metrics.jsonl").read_text().splitlines()]
    [best] = [row for row in record if row["split"] == "validation" and row["step"] == run.value_step]
    assert (run.program, run.state, run.step, run.saved, run.metric) == ("finetune", "done", 3, 3, "accuracy")
    assert run.value == best["accuracy"] and run.bytes == sum(
        path.stat().st_size for path in tuned.rglob("*") if path.is_file()
    )
    assert (listed["source"].program, listed["source"].saved) == ("pretrain", 7)


def test_the_step_that_was_best_is_shown_where_the_run_knows_it(tmp_path):
    last, best = make_run(tmp_path / "last"), make_run(tmp_path / "best", best_step=20)
    shown = {run.name: run for run in runs(tmp_path)}
    assert (shown["last"].step, shown["last"].planned, shown["last"].saved, shown["last"].loss) == (40, 50, 35, 2.5)
    assert (str(shown["last"].value), shown["last"].value_step) == ("nan", 30)
    assert (shown["best"].value, shown["best"].value_step) == (1.5, 20)
    assert last != best


@pytest.mark.parametrize(
    ("exit", "state", "why"),
    [
        (0, "done", ""),
        (85, "preempted", ""),
        (130, "interrupted", ""),
        (3, "failed", "A corpus, shard or document that cannot be trained on"),
        (8, "failed", "Disk or memory that ran out"),
        (1, "failed", "A bug; its output has the traceback"),
        (None, "killed", "was pid 5 on host a since today, and wrote no exit code"),
    ],
)
def test_the_exit_code_says_how_a_run_ended(tmp_path, exit, state, why):
    make_run(tmp_path / "a", exit=exit)
    run = only(tmp_path)
    assert (run.state, run.why, run.exit) == (state, why, exit)


def test_a_run_whose_lock_is_held_is_running_until_its_process_is_gone(tmp_path):
    make_run(tmp_path / "a", exit=85)
    code = "import time\nfrom pretrain.train.run_dir.base import RunConfig, RunDirectory\n"
    code += f"held = RunDirectory.claim(RunConfig(name='a', root={str(tmp_path)!r}))\ntime.sleep(600)"
    holder = Forked("-c", code)
    wait_until(lambda: only(tmp_path).state == "running", holder)
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert only(tmp_path).state == "preempted"


def test_looking_at_a_run_never_keeps_it_from_starting(tmp_path):
    make_run(tmp_path / "a", exit=None)
    lister = Forked("-c", f"from pretrain.report.listing import runs\nwhile True: runs({str(tmp_path)!r})")
    for _ in range(300):
        RunDirectory.claim(RunConfig(name="a", root=str(tmp_path)))._lock.close()
    assert lister.poll() is None
    lister.kill()


def test_runs_that_have_not_begun(tmp_path):
    for name in ("queued", "doctor", "lrs-sweep"):
        (tmp_path / name / "slurm").mkdir(parents=True)
        (tmp_path / name / "slurm" / "job.sh").touch()
    refused = tmp_path / "refused"
    refused.mkdir()
    for name in ("lock", "log.txt"):
        (refused / name).touch()
    assert {run.name: run.state for run in runs(tmp_path)} == {"queued": "waiting", "refused": "failed"}


def test_damaged_directories_are_listed_as_such(tmp_path):
    def changed(name, file, content):
        path = make_run(tmp_path / name) / file
        path.unlink()
        path.write_bytes(content)

    changed("seal", "run.json", sealed({"exit": 0}).replace(b"0", b"1", 1))
    changed("torn", "run.json", b'{"exit')
    changed("record", "metrics.jsonl", b'{"split": "train", "step": "five"}\n')
    changed("number", "metrics.jsonl", b'{"step": 5, "split": "train", "loss": "five"}\n')
    changed("config", "config.yaml", b"\xff\xfe not yaml: [")
    (make_run(tmp_path / "gone") / "run.json").unlink()
    (make_run(tmp_path / "folder") / "metrics.jsonl").unlink()
    (tmp_path / "folder" / "metrics.jsonl").mkdir()
    os.mkfifo(make_run(tmp_path / "pipe") / "fifo")
    make_run(tmp_path / "empty")
    (tmp_path / "empty" / "metrics.jsonl").write_text("")
    listed = {run.name: run for run in runs(tmp_path)}
    damaged = {name: run.why for name, run in listed.items() if run.state == "damaged"}
    assert damaged.keys() == {"seal", "torn", "record", "number", "gone", "folder"} and all(damaged.values())
    assert listed["config"].program is None and listed["config"].state == "done"
    assert listed["empty"].step is None and listed["pipe"].state == "done"


def test_folders_of_runs_links_and_circles(tmp_path):
    kept = make_run(tmp_path / "elsewhere" / "linked")
    root = tmp_path / "runs"
    make_run(root / "lrs" / "a")
    make_run(root / "lrs" / "a" / "export" / "not-one-of-ours")
    (root / "b").symlink_to(kept)
    (root / "lrs" / "circle").symlink_to(root)
    assert sorted(run.name for run in runs(root)) == ["b", "lrs/a"]
    assert only(kept).name == "linked"
    with pytest.raises(ConfigError, match=r"nowhere: no such folder; name the one that holds runs"):
        runs(tmp_path / "nowhere")


def test_the_table_and_its_order(tmp_path, capsys):
    first, second = make_run(tmp_path / "first", exit=5), make_run(tmp_path / "second", best_step=20)
    shutil.rmtree(second / "checkpoints")
    now = time.time()
    for folder, age in ((first, 100), (second, 7300)):
        for path in (*folder.iterdir(), folder):
            os.utime(path, (now - age, now - age))
    assert listing.main([str(tmp_path)]) == 0
    header, one, reason, two = capsys.readouterr().out.splitlines()
    assert header.split()[:5] == ["run", "program", "state", "step", "saved"]
    assert one.split()[:6] == ["first", "pretrain", "failed", "(5)", "40/50", "35"] and one.endswith("1 min ago")
    assert reason.strip().startswith("failed: Losses or gradients")
    assert "loss 1.5000 at 20" in two and two.endswith("2 h ago") and two.split()[4] == "-"
    assert listing.main([str(tmp_path), "--sort", "size", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["name"] for line in lines] == ["first", "second"] and lines[0]["value"] == "NaN"

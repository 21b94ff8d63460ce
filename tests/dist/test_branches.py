"""Runs that branch off others: bit for bit the same where nothing changes, refused by name where they cannot go on."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from forks import FAST
from ranks import column, run

from pretrain.checkpoint.load import fragments_of, load_state

BEGIN, END = "step-00000020", "step-00000024"  # of `uninterrupted`, which has dropout and ends with the latter
BRANCH = ["branch_from=runs/uninterrupted@20", "log.every=1", "checkpoint.every=5"]


def tensors(run_directory: Path, step: str) -> dict[tuple[str, str], torch.Tensor]:
    """Return weights and moments of a step."""
    read = fragments_of(run_directory / "checkpoints" / step)
    return {
        (name, kind): read(name, kind, 0, shape.numel())
        for name in read.tensors
        for kind, shape in read.kinds(name).items()
    }


def test_a_branch_with_nothing_changed_is_its_origin_bit_for_bit(place, uninterrupted):
    done = run("run.name=same", *BRANCH, cwd=place)
    assert "what is not given is that of runs/uninterrupted: seed, data, tokenizer, model," in done.stderr
    assert "branching off runs/uninterrupted at step-00000020" in done.stderr
    same = place / "runs" / "same"
    ours, theirs = tensors(same, END), tensors(uninterrupted, END)
    assert ours.keys() == theirs.keys()
    assert len({kind for _, kind in ours}) == 4, "weights, two moments and their steps"
    for key, tensor in theirs.items():
        assert torch.equal(ours[key], tensor), key
    losses = column(same, "loss")
    assert losses == {step: loss for step, loss in column(uninterrupted, "loss").items() if step > 20}
    assert load_state(same / "checkpoints" / END)["tokens"] == load_state(uninterrupted / "checkpoints" / END)["tokens"]
    record = json.loads((same / "run.json").read_text())
    assert record["branch"] == {"run": "runs/uninterrupted", "step": 20, "data": "continue"}
    assert not record.get("notes")


def test_fresh_data_begin_with_their_first_slot_and_a_resumed_branch_goes_on_in_them(place, uninterrupted):
    """Weights that do not change have the losses, at steps 25 to 28, of a new run at steps 1 to 4."""
    origin = place / "runs" / "origin"
    shutil.copytree(uninterrupted, origin)
    still = ["optim.lr=1e-30", "model.dropout=0", "optim.weight_decay=0", "log.every=1"]
    words = ["run.name=fresh", "branch_from=origin@24", "branch.data=fresh", "seed=3", *still]
    run(*words, "train.steps=26", cwd=place)
    shutil.rmtree(origin)  # which is needed no more
    done = run(*words, "branch_from=elsewhere@1", "train.steps=28", cwd=place)
    assert "branch_from=elsewhere@1: left alone" in done.stderr
    data = ["data=text", "data.sources.text.paths=[text.txt]", "data.sources.text.documents=blank_line"]
    size = ["data.seq_len=32", "data.prepare.held_out=0.1", "train.batch_size=8", "train.steps=4"]
    run("run.name=anew", "init_from=runs/uninterrupted", "seed=3", *data, *size, *still, cwd=place)
    found, expected = column(place / "runs" / "fresh", "loss"), column(place / "runs" / "anew", "loss")
    assert [found[step + 24] for step in range(1, 5)] == pytest.approx(
        [expected[step] for step in range(1, 5)], abs=1e-6
    )
    assert len({round(loss, 3) for loss in expected.values()}) == 4, "other slots would be seen"
    assert load_state(place / "runs" / "fresh" / "checkpoints" / "step-00000028")["resume"]["data.first_step"] == 24


def test_a_branch_that_cannot_go_on_is_refused_before_anything_is_written(place, uninterrupted):
    done = run("run.name=refused", *BRANCH, "train.batch_size=16", "train.steps=30", code=3, cwd=place)
    assert "branch_from=runs/uninterrupted@20: train.batch_size is 16 here and 8 there" in done.stderr
    assert not (place / "runs" / "refused" / "checkpoints").exists()
    assert not (place / "runs" / "refused" / "run.json").exists()


@pytest.mark.slow
def test_a_branch_on_two_ranks_and_another_strategy_agrees(place, one_process):
    words = ["run.name=two", "branch_from=runs/one@20", "log.every=1", "strategy=zero2", "train.micro_batch_size=4"]
    run(*words, ranks=2, cwd=place)
    found, expected = column(place / "runs" / "two", "loss"), column(one_process, "loss")
    assert found == pytest.approx({step: loss for step, loss in expected.items() if step > 20}, rel=1e-5)


@pytest.mark.slow
def test_a_sweep_of_cooldowns_shares_the_steps_of_its_origin(place, uninterrupted):
    words = [
        "run.name=cool",
        *BRANCH,
        "schedule=cooldown",
        "schedule.shape=sqrt",
        "train.steps=23,26,30",
        "checkpoint.keep=9",
    ]
    line = [sys.executable, "-m", "launch", "local", "nproc=1", "--", "pretrain", *words]
    done = subprocess.run(line, capture_output=True, text=True, cwd=place, env=os.environ | FAST, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    origin = {file.name: file.stat().st_ino for file in (uninterrupted / "checkpoints" / BEGIN).glob("*.safetensors")}
    for end in (23, 26, 30):
        cooled = place / "runs" / f"cool-steps-{end}"
        rates = column(cooled, "lr")
        assert sorted(rates) == [*range(21, end + 1)], "no step is trained again"
        expected = [3e-3 * (1 - ((step - 21) / (end - 20)) ** 0.5) for step in range(21, end + 1)]
        assert list(rates.values()) == pytest.approx(expected, rel=1e-6)
        begun = (cooled / "checkpoints" / BEGIN).glob("*.safetensors")
        assert {file.name: file.stat().st_ino for file in begun} == origin

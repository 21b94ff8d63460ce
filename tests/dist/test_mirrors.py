"""Runs of several ranks whose disk is lost go on from their mirror, on other ranks and under another strategy."""

import json
import shutil

import pytest
from ranks import column, run, tiny
from test_pretrain import assert_close_runs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SETTINGS = [
    *("train.batch_size=12", "train.micro_batch_size=2", "train.steps=14", "schedule=constant"),
    *("eval.every=2", "checkpoint.every=2", "checkpoint.keep=1", "checkpoint.keep_every=4"),
]
MOVES = [("zero3", 3, "fsdp2", 2), ("fsdp2", 2, "zero2", 1)]


def flipped(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.fixture(scope="module")
def whole(place):
    run(*tiny("whole", *SETTINGS), cwd=place)
    return place / "runs" / "whole"


@pytest.mark.parametrize(("first", "ranks", "then", "fewer"), MOVES)
def test_a_lost_run_goes_on_elsewhere_past_a_damaged_copy(place, whole, first, ranks, then, fewer):
    name = f"lost-{first}"
    mirrored = [*tiny(name, *SETTINGS), f"checkpoint.mirror=file://{place}/mirror"]
    run(*mirrored, f"strategy={first}", "train.steps=10", ranks=ranks, cwd=place)
    directory, there = place / "runs" / name, place / "mirror" / name
    assert {path.name for path in (directory / "checkpoints").iterdir()} <= {path.name for path in there.iterdir()}
    before = column(directory, "loss")
    shutil.rmtree(directory)
    last = there / "step-00000010/checkpoints/step-00000010"
    damaged = max(last.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    flipped(damaged)

    run(*mirrored, f"strategy={then}", ranks=fewer, cwd=place)
    assert_close_runs(whole, directory)
    notes = "\n".join(json.loads((directory / "run.json").read_text())["notes"])
    assert f"step-00000010 is passed over: checkpoints/step-00000010/{damaged.name}" in notes
    assert "step-00000008 was fetched" in notes
    after = column(directory, "loss")
    assert [after[step] for step in range(1, 9)] == [before[step] for step in range(1, 9)], "its own metrics came back"

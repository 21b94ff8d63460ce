"""Runs on several ranks whose own disk is lost: they go on from their mirror, on other ranks and another strategy."""

import shutil

import pytest
from ranks import column, end, run, start, tiny, wait_until

pytestmark = pytest.mark.slow


def kept(folder):
    return sorted(path.name for path in folder.glob("step-*"))


def test_ranks_whose_disk_is_lost_go_on_elsewhere_from_a_mirror_and_pass_over_what_is_damaged_there(place):
    store, directory = place / "store" / "moved_away", place / "runs" / "moved_away"
    course = ["model.dropout=0", "train.batch_size=24", "train.micro_batch_size=2", "checkpoint.keep=2"]
    mirror = [f"checkpoint.mirror=file://{store.parent}", "checkpoint.keep_every=10"]
    run(*tiny("stayed", *course), cwd=place)

    def go_on(strategy, ranks):
        run(*tiny("moved_away", *course, *mirror, f"strategy={strategy}"), ranks=ranks, cwd=place)
        losses = column(directory, "loss")
        assert losses == pytest.approx(column(place / "runs" / "stayed", "loss"), rel=1e-5)

    ranks = start(*tiny("moved_away", *course, *mirror, "strategy=zero3"), ranks=3, cwd=place)
    wait_until((store / "step-00000010" / "mirror.json").exists, *ranks)
    for rank in ranks:
        rank.kill()
    end(ranks)
    shutil.rmtree(directory)
    go_on("fsdp2", 2)
    assert kept(store) == ["step-00000010", "step-00000020", "step-00000024"], "a milestone and the newest two"
    shutil.rmtree(directory)
    newest = next((store / "step-00000024").rglob("*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-3] + b"xyz")
    go_on("zero2", 1)

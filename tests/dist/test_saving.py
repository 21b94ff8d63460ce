"""Saving in the background on several ranks: agreement, failures on one of them, whole runs killed and resumed."""

import os
import resource
import signal
import subprocess
import time

import pytest
import torch
from ranks import FAST, command, end, on_ranks, run, start, tiny, wait_until
from safetensors.torch import load_file
from test_pretrain import assert_equal_runs

from pretrain.checkpoint.base import WEIGHT, Fragment
from pretrain.checkpoint.fragments import FragmentReader
from pretrain.checkpoint.load import load_manifest, newest_step
from pretrain.checkpoint.save import CheckpointConfig, Checkpoints
from pretrain.errors import ResourceError

pytestmark = pytest.mark.timeout(900)  # s; many processes on few cores, and others may use them too

ROWS = 1000  # of each rank; 16,000 bytes a fragment


class Rows:
    """What saving needs of a strategy: each rank owns a run of one tensor, a view of what it trains."""

    def __init__(self, world, value):
        self.world = world
        self.live = torch.full((ROWS, 4), float(value))

    def fragments(self):
        start = self.world.rank * self.live.numel()
        yield Fragment("table", WEIGHT, (ROWS * self.world.size, 4), start, self.live.view(-1))

    def state(self):
        return {}


def settled(checkpoints):
    """Pass step boundaries until no save is under way; return how many it took."""
    boundaries, deadline = 0, time.monotonic() + 60
    while checkpoints.under_way:
        assert time.monotonic() < deadline
        time.sleep(0.001 * (1 + checkpoints.world.rank))
        checkpoints.settle()
        boundaries += 1
    return boundaries


def change_after_saving(world, directory):
    checkpoints = Checkpoints(directory, CheckpointConfig(asynchronous=True), world)
    rows = Rows(world, value=7)
    for step in (1, 2):
        rows.live.fill_(step)
        checkpoints.save(step, rows, {})
        rows.live.fill_(torch.nan)
    boundaries = settled(checkpoints)
    assert len(set(world.gather(boundaries))) == 1, "every rank is done at the same step"
    step = newest_step(directory, world)
    read = FragmentReader(step, load_manifest(step)["tensors"])
    total = 4 * ROWS * world.size
    assert step.name == "step-00000002"
    assert torch.equal(read("table", WEIGHT, 0, total), torch.full((total,), 2.0))


def test_every_rank_writes_what_it_had_at_the_call(tmp_path):
    on_ranks(3, change_after_saving, tmp_path)


def fail_on_one_rank(world, directory):
    checkpoints = Checkpoints(directory, CheckpointConfig(asynchronous=True), world)
    rows = Rows(world, value=7)
    checkpoints.save(1, rows, {}, required=True)
    if world.rank == 1:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # its disk is full
    for step in (2, 3):
        checkpoints.save(step, rows, {})
        boundaries = settled(checkpoints)
        assert len(set(world.gather(boundaries))) == 1, "every rank learns of it at the same step"
        assert checkpoints.failures == step - 1
    checkpoints.save(4, rows, {})
    with pytest.raises(
        ResourceError, match=r"step 4 could not be saved \(rank 1: .*File too large.*failure 3 in a row"
    ):
        settled(checkpoints)
    assert len(world.gather("still in step")) == 2
    assert [path.name for path in directory.iterdir()] == ["step-00000001"]


def test_a_disk_that_is_full_for_one_rank_is_known_to_all_at_the_same_step(tmp_path):
    on_ranks(2, fail_on_one_rank, tmp_path)


def require_on_a_full_disk(world, directory):
    checkpoints = Checkpoints(directory, CheckpointConfig(asynchronous=True), world)
    if world.is_first:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    with pytest.raises(ResourceError, match=r"step 1 could not be saved \(rank 0: .*failure 1 in a row"):
        checkpoints.save(1, Rows(world, value=7), {}, required=True)


def test_a_required_save_fails_at_once_on_all_ranks(tmp_path):
    on_ranks(2, require_on_a_full_disk, tmp_path)


def two(name: str, *more: str) -> list[str]:
    long = ["train.steps=60", "train.micro_batch_size=4"]
    return tiny(name, *long, "model.dropout=0.1", "checkpoint.asynchronous=true", *more)


def test_three_failures_in_the_background_end_a_run_with_8(place):
    overrides = tiny("full", "checkpoint.asynchronous=true", "train.steps=5")
    run(*overrides, cwd=place)  # with the corpus, before the disk is full
    limited = ["bash", "-c", 'ulimit -f 64; exec "$0" "$@"', *command(*overrides, "train.steps=1000")]
    done = subprocess.run(limited, capture_output=True, text=True, cwd=place, env=os.environ | FAST, timeout=120)
    assert done.returncode == 8, done.stderr[-2000:]
    assert "failure 3 in a row" in done.stderr
    assert [path.name for path in (place / "runs" / "full" / "checkpoints").iterdir()] == ["step-00000005"]


def test_two_ranks_killed_while_they_save_and_resumed_equal_never_interrupted(place):
    run(*two("whole"), ranks=2, cwd=place)
    directory = place / "runs" / "torn"
    for victim in (0, 1):
        committed = set((directory / "checkpoints").glob("step-*"))
        ranks = start(*two("torn"), ranks=2, cwd=place)
        wait_until(
            lambda before=committed: (
                set((directory / "checkpoints").glob("step-*")) - before
                and any((directory / "checkpoints").glob(".tmp-*"))
            ),
            *ranks,
        )
        ranks[victim].kill()
        codes = end(ranks, 60)
        assert (codes[victim], codes[1 - victim]) == (-signal.SIGKILL, 7)
    run(*two("torn"), ranks=2, cwd=place)
    assert_equal_runs(place / "runs" / "whole", directory)
    assert not list((directory / "checkpoints").glob(".tmp-*"))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["zero2", "zero3", "fsdp2"])
def test_every_strategy_hands_over_what_a_copy_keeps(place, strategy):
    saved = []
    for asynchronous in ("true", "false"):
        name = f"{strategy}-{asynchronous}"
        choice = [f"strategy={strategy}", f"checkpoint.asynchronous={asynchronous}", "checkpoint.every=10"]
        run(*tiny(name, "train.micro_batch_size=4", *choice), ranks=2, cwd=place)
        files = sorted((place / "runs" / name / "checkpoints" / "step-00000020").glob("*.safetensors"))
        saved.append({(file.name, key): value for file in files for key, value in load_file(file).items()})
    first, second = saved
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)

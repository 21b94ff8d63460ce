"""Fragments read across their borders, what does not cover a tensor refused, and files shared out among ranks."""

import itertools
from pathlib import Path

import pytest
import torch
from rank_threads import on_threads

from pretrain.checkpoint.base import WEIGHT, Fragment
from pretrain.checkpoint.fragments import FragmentReader, write_fragments
from pretrain.checkpoint.load import load_manifest, newest_step, saved_step
from pretrain.checkpoint.save import CheckpointConfig, Checkpoints
from pretrain.errors import CheckpointError

SHAPE = (5, 3)
CUTS = [0, 1, 6, 6, 8, 15]  # of its 15 elements: fragments of 1, 5, 0, 2 and 7


def table(fragments, shape=SHAPE):
    """Return what a manifest says of one tensor: a list of (file, start, numel)."""
    return {"w": {WEIGHT: {"shape": list(shape), "dtype": "float32", "fragments": [list(each) for each in fragments]}}}


@pytest.fixture
def cut(tmp_path):
    """A tensor of distinct numbers in fragments of uneven sizes, in three files, listed in no order."""
    whole = torch.randn(15, generator=torch.Generator().manual_seed(1))
    listed = []
    for number in (2, 0, 1):
        own = list(itertools.pairwise(CUTS))[number::3]
        fragments = [Fragment("w", WEIGHT, SHAPE, start, whole[start:end]) for start, end in reversed(own)]
        index = write_fragments(tmp_path / f"{number}.safetensors", fragments)
        listed += [(index["file"], start, numel) for *_, start, numel in index["fragments"]]
    return whole, FragmentReader(tmp_path, table(listed))


def test_every_run_of_elements_is_that_of_the_whole_tensor(cut):
    whole, read = cut
    for start in range(16):
        for numel in range(16 - start):
            assert torch.equal(read("w", WEIGHT, start, numel), whole[start : start + numel]), (start, numel)


@pytest.mark.parametrize(
    ("fragments", "problem"),
    [
        ([(0, 4), (5, 10)], "gap or overlap at element 4"),
        ([(0, 4), (3, 12)], "gap or overlap at element 4"),
        ([(0, 15), (0, 15)], "gap or overlap at element 15"),
        ([(0, 15), (14, 1)], "gap or overlap at element 15"),
        ([(1, 14)], "gap or overlap at element 0"),
        ([(0, 4), (4, 10)], "ends at element 14 of 15"),
        ([(0, 4), (4, 12)], "ends at element 16 of 15"),
        ([(0, 0)], "ends at element 0 of 15"),
        ([], "ends at element 0 of 15"),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_what_does_not_cover_a_tensor_once_is_refused(fragments, problem, turned):
    listed = [("f", start, numel) for start, numel in (fragments[::-1] if turned else fragments)]
    with pytest.raises(CheckpointError, match=f"{WEIGHT} of w .*{problem}"):
        FragmentReader(Path("step"), table(listed))


def test_fragments_cover_a_tensor_in_whatever_order_they_are_listed():
    for order in itertools.permutations([("f", 0, 4), ("e", 4, 0), ("d", 4, 10), ("g", 14, 1)]):
        FragmentReader(Path("step"), table(order))


def test_scalars_and_tensors_without_elements_are_whole():
    FragmentReader(Path("step"), table([("f", 0, 1)], shape=()))
    FragmentReader(Path("step"), table([], shape=(0, 3)))


class Rows:
    """What saving needs of a strategy: ranks own uneven runs of one tensor."""

    def __init__(self, world):
        bounds = [0, 7, 8, 15]
        self.own = bounds[world.rank], bounds[world.rank + 1]

    def fragments(self):
        start, end = self.own
        yield Fragment("w", WEIGHT, SHAPE, start, torch.arange(float(start), float(end)))

    def state(self):
        return {}


def save_two(world, directory):
    checkpoints = Checkpoints(directory, CheckpointConfig(), world)
    for step in (1, 2):
        checkpoints.save(step, Rows(world), {"tokens": step}, required=step == 2)
    checkpoints._background.shutdown()
    return newest_step(directory, world)


def test_ranks_write_one_step_and_find_together_what_is_damaged_in_it(tmp_path):
    newest = tmp_path / "step-00000002"
    assert on_threads(3, lambda world: save_two(world, tmp_path)) == [newest] * 3
    read = FragmentReader(newest, load_manifest(newest)["tensors"])
    assert torch.equal(read("w", WEIGHT, 0, 15), torch.arange(15.0))
    assert len(list(newest.glob("*.safetensors"))) == 3
    for path in sorted(load_manifest(newest)["files"]):
        whole = (newest / path).read_bytes()
        (newest / path).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        for size in (1, 2, 3):
            found = on_threads(size, lambda world: newest_step(tmp_path, world))
            assert found == [tmp_path / "step-00000001"] * size, (path, size)
            refused = on_threads(size, lambda world: saved_step(tmp_path, world, 2))
            assert all(isinstance(error, CheckpointError) and path in str(error) for error in refused)
        (newest / path).write_bytes(whole)
    assert on_threads(2, lambda world: newest_step(tmp_path, world)) == [newest] * 2

"""A committed step in another directory: linked where that is possible, whole or not at all, and what it says there."""

import errno
import os

import pytest
from toys import ALONE, assert_same, state_of, take_step, toy_strategy

from pretrain.checkpoint import copying
from pretrain.checkpoint.copying import copy_step
from pretrain.checkpoint.load import load_manifest, load_state, newest_step, restore, shapes_of
from pretrain.checkpoint.save import CheckpointConfig, Checkpoints
from pretrain.errors import CheckpointError


@pytest.fixture
def step(tmp_path):
    module, strategy = toy_strategy()
    take_step(module, strategy, seed=1)
    Checkpoints(tmp_path / "a", CheckpointConfig(asynchronous=False), ALONE).save(5, strategy, {"tokens": 55})
    return tmp_path / "a" / "step-00000005"


def fragments(step):
    return sorted(step.glob("*.safetensors"))


def test_files_are_shared_and_the_state_is_its_own(step, tmp_path):
    copied = copy_step(step, tmp_path / "b", {**load_state(step), "tokens": 7})
    assert copied == (tmp_path / "b" / step.name, 1, 0, "")
    assert newest_step(tmp_path / "b", ALONE) == copied.step
    assert [file.stat().st_ino for file in fragments(copied.step)] == [file.stat().st_ino for file in fragments(step)]
    assert load_state(copied.step) == {**load_state(step), "tokens": 7}
    assert load_manifest(copied.step)["tensors"] == load_manifest(step)["tensors"]
    (first, one), (second, other) = toy_strategy(), toy_strategy()
    restore(step, shapes_of(first), one)
    restore(copied.step, shapes_of(second), other)
    assert_same(state_of(first, one), state_of(second, other))


def test_a_step_outlives_the_first_one(step, tmp_path):
    copied = copy_step(step, tmp_path / "b", load_state(step))
    for file in step.iterdir():
        file.unlink()
    assert newest_step(tmp_path / "b", ALONE) == copied.step


def no_links(*_):
    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))


def test_where_no_link_can_be_made_files_are_copied_and_that_is_said(step, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", no_links)
    copied = copy_step(step, tmp_path / "b", load_state(step))
    [ours], [theirs] = fragments(copied.step), fragments(step)
    assert copied[1:] == (0, theirs.stat().st_size, "Invalid cross-device link")
    assert ours.stat().st_ino != theirs.stat().st_ino
    assert newest_step(tmp_path / "b", ALONE) == copied.step


def test_a_copy_of_other_bytes_than_were_saved_is_refused(step, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", no_links)
    [file] = fragments(step)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="its SHA-256 is not the manifest's"):
        copy_step(step, tmp_path / "b", load_state(step))
    assert newest_step(tmp_path / "b", ALONE) is None


def test_a_copy_that_was_killed_begins_anew(step, tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(copying, "commit", killed)
        copy_step(step, tmp_path / "b", load_state(step))
    assert [path.name for path in (tmp_path / "b").iterdir()] == [".tmp-step-00000005-branch"]
    assert newest_step(tmp_path / "b", ALONE) is None
    copied = copy_step(step, tmp_path / "b", load_state(step))
    assert list((tmp_path / "b").iterdir()) == [copied.step]
    assert newest_step(tmp_path / "b", ALONE) == copied.step


def test_a_step_that_is_deleted_meanwhile_is_named(step, tmp_path, monkeypatch):
    def read(path):
        manifest = load_manifest(path)
        fragments(path)[0].unlink()
        return manifest

    monkeypatch.setattr(copying, "load_manifest", read)
    with pytest.raises(CheckpointError, match=r"safetensors: deleted while it was copied.*checkpoint\.keep_every"):
        copy_step(step, tmp_path / "b", load_state(step))

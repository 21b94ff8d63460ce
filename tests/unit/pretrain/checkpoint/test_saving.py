"""Saving in the background: the bytes of the moment of the call, one save at a time, failures at a boundary."""

import errno
import os
import threading

import pytest
import torch
from rank_threads import on_threads
from ranks import wait_until
from toys import ALONE, assert_same, state_of, take_step, toy_strategy

import pretrain.checkpoint.commit
import pretrain.checkpoint.save
from pretrain.checkpoint.load import load_state, newest_step, restore, shapes_of
from pretrain.checkpoint.save import CheckpointConfig, Checkpoints
from pretrain.errors import CheckpointError, ResourceError


class Gate:
    """Holds up the writing of fragments until `open`; `full` then makes it fail as a full disk does."""

    def __init__(self, monkeypatch):
        self.full = False
        self.fault = None
        self.written = []
        self._open = threading.Event()
        self._write = pretrain.checkpoint.save.write_fragments
        monkeypatch.setattr(pretrain.checkpoint.save, "write_fragments", self)

    def open(self):
        self._open.set()

    def __call__(self, path, fragments):
        assert self._open.wait(60)
        if self.fault:
            raise self.fault
        if self.full:
            raise OSError(28, "No space left on device")
        self.written.append(path.parent.name[:18])
        return self._write(path, fragments)


@pytest.fixture
def gate(monkeypatch):
    gate = Gate(monkeypatch)
    yield gate
    gate.open()  # a thread that waits would keep the interpreter from ending


@pytest.fixture
def run(tmp_path):
    """A toy run after one step, and its checkpoints."""
    module, strategy = toy_strategy()
    take_step(module, strategy, 1)
    return module, strategy, Checkpoints(tmp_path, CheckpointConfig(asynchronous=True), ALONE)


def copied(state):
    return {key: value.clone() for key, value in state.items()}


def restored(directory):
    module, strategy = toy_strategy()
    restore(newest_step(directory, ALONE), shapes_of(module), strategy)
    return state_of(module, strategy)


def steps(checkpoints):
    return sorted(path.name for path in checkpoints.directory.iterdir())


def test_what_is_written_is_what_was_there_at_the_call(run, gate):
    module, strategy, checkpoints = run
    progress = {"tokens": 11}
    before = copied(state_of(module, strategy))
    checkpoints.save(1, strategy, progress)
    for tensor in state_of(module, strategy).values():
        tensor.fill_(torch.nan)
    progress["tokens"] = 12
    gate.open()
    checkpoints.settle(wait=True)
    assert_same(before, restored(checkpoints.directory))
    assert load_state(newest_step(checkpoints.directory, ALONE))["tokens"] == 11


def test_training_goes_on_while_it_is_written(run, gate):
    module, strategy, checkpoints = run
    checkpoints.save(1, strategy, {})
    for seed in range(3):
        checkpoints.settle()
        take_step(module, strategy, seed)
        assert newest_step(checkpoints.directory, ALONE) is None
    gate.open()
    wait_until(lambda: checkpoints.settle() or not checkpoints.under_way)
    assert steps(checkpoints) == ["step-00000001"]


def test_a_save_waits_for_the_one_before(run, gate):
    module, strategy, checkpoints = run
    checkpoints.save(1, strategy, {"tokens": 1})
    threading.Timer(0.2, gate.open).start()
    take_step(module, strategy, 2)
    checkpoints.save(2, strategy, {"tokens": 2})
    assert "step-00000001" in steps(checkpoints)
    second = copied(state_of(module, strategy))
    take_step(module, strategy, 3)
    checkpoints.settle(wait=True)
    assert steps(checkpoints) == ["step-00000001", "step-00000002"]
    assert_same(second, restored(checkpoints.directory))


def test_a_required_save_is_committed_when_it_returns_and_so_is_the_one_before(run, gate):
    _, strategy, checkpoints = run
    checkpoints.save(1, strategy, {})
    threading.Timer(0.2, gate.open).start()
    checkpoints.save(2, strategy, {}, required=True)
    assert not checkpoints.under_way
    assert steps(checkpoints) == ["step-00000001", "step-00000002"]


def test_failures_in_the_background_count_and_a_success_begins_again(run, gate):
    _, strategy, checkpoints = run
    gate.open()
    gate.full = True
    for step in (1, 2):
        checkpoints.save(step, strategy, {})
        checkpoints.settle(wait=True)
    assert checkpoints.failures == 2
    gate.full = False
    checkpoints.save(3, strategy, {})
    checkpoints.settle(wait=True)
    assert checkpoints.failures == 0
    assert steps(checkpoints) == ["step-00000003"]
    gate.full = True
    for step in (4, 5):
        checkpoints.save(step, strategy, {})
        checkpoints.settle(wait=True)
    checkpoints.save(6, strategy, {})
    with pytest.raises(ResourceError, match=r"step 6 could not be saved .*No space left.* failure 3 in a row"):
        checkpoints.settle(wait=True)
    assert steps(checkpoints) == ["step-00000003"], "the step before stays, and nothing is left behind"


def test_closing_alone_completes_a_save_under_way(run, gate):
    _, strategy, checkpoints = run
    checkpoints.save(1, strategy, {})
    threading.Timer(0.2, gate.open).start()
    checkpoints.close()
    assert steps(checkpoints) == ["step-00000001"]


def test_closing_after_an_error_does_not_hide_it(run, gate, caplog):
    _, strategy, checkpoints = run
    gate.open()
    gate.full = True
    checkpoints.cfg.max_failures = 1
    checkpoints.save(1, strategy, {})
    checkpoints.close()
    assert "saving step 1 failed" in caplog.text
    assert steps(checkpoints) == []


@pytest.mark.parametrize("fault", [ValueError("no such dtype"), MemoryError(), AssertionError("uneven")])
def test_a_fault_that_is_not_of_the_disk_ends_the_run_at_the_next_boundary_and_counts_as_none(run, gate, fault):
    module, strategy, checkpoints = run
    gate.fault = fault
    checkpoints.save(1, strategy, {})
    take_step(module, strategy, 2)
    gate.open()
    with pytest.raises(
        CheckpointError, match=rf"step 1 could not be saved \(rank 0: {type(fault).__name__}: .*, at test_"
    ):
        checkpoints.settle(wait=True)
    assert (checkpoints.failures, checkpoints.under_way, steps(checkpoints)) == (0, None, [])
    checkpoints.save(2, strategy, {})
    checkpoints.close()  # what ended the run is not hidden by the same fault again


def test_a_fault_of_the_commit_is_one_of_saving(run, monkeypatch):
    _, strategy, checkpoints = run

    def prune(*arguments):
        raise LookupError("which steps?")

    monkeypatch.setattr(pretrain.checkpoint.save, "prune", prune)
    with pytest.raises(
        CheckpointError, match=r"commit: LookupError: which steps\?, at test_saving\.py, line \d+, in prune"
    ):
        checkpoints.save(1, strategy, {}, required=True)


def test_all_ranks_learn_of_a_fault_on_one_of_them(tmp_path, monkeypatch):
    write = pretrain.checkpoint.save.write_fragments

    def broken(path, fragments):
        if "00001-of" in path.name:
            raise TypeError("a tensor that is none")
        return write(path, fragments)

    monkeypatch.setattr(pretrain.checkpoint.save, "write_fragments", broken)

    def body(world):
        module, strategy = toy_strategy()
        take_step(module, strategy, 1)
        checkpoints = Checkpoints(tmp_path, CheckpointConfig(), world)
        checkpoints.save(1, strategy, {})
        checkpoints.settle(wait=True)

    found = on_threads(3, body)
    assert all(isinstance(answer, CheckpointError) for answer in found)
    assert "rank 1: TypeError: a tensor that is none" in str(found[0]) and len(set(map(str, found))) == 1


def test_what_a_killed_save_left_and_nobody_can_delete_is_named_and_holds_nothing_up(run, monkeypatch, caplog):
    _, strategy, checkpoints = run
    left = checkpoints.directory / ".tmp-step-00000001-abcd"
    left.mkdir(parents=True)

    def remove(path):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path))

    monkeypatch.setattr(pretrain.checkpoint.commit, "remove", remove)
    checkpoints.begin()
    assert f"{left}, which a killed save left, cannot be deleted" in caplog.text
    checkpoints.save(1, strategy, {}, required=True)
    assert steps(checkpoints) == [left.name, "step-00000001"]

"""Steps that a network file system shows late: ranks wait for what one of them sees, for a while, and end together."""

import shutil
import threading

import pytest
from rank_threads import on_threads
from toys import ALONE, take_step, toy_strategy

from pretrain.checkpoint import visibility
from pretrain.checkpoint.load import newest_step
from pretrain.checkpoint.save import CheckpointConfig, Checkpoints
from pretrain.errors import CheckpointError
from pretrain.files import hash_file


@pytest.fixture
def views(tmp_path, monkeypatch):
    """The folders of three ranks, each a view of the same two steps."""
    monkeypatch.setattr(visibility, "POLL_S", 0.01)
    module, strategy = toy_strategy()
    checkpoints = Checkpoints(tmp_path / "0", CheckpointConfig(asynchronous=False), ALONE)
    for step in (1, 2):
        take_step(module, strategy, step)
        checkpoints.save(step, strategy, {})
    for rank in (1, 2):
        shutil.copytree(tmp_path / "0", tmp_path / str(rank))
    return [tmp_path / str(rank) for rank in range(3)]


def chosen(views, **options):
    """Return the name of the step that each rank chooses."""
    return [path if isinstance(path, Exception) else path.name for path in on_threads(3, choose(views, options))]


def choose(views, options):
    return lambda world: newest_step(views[world.rank], world, **options)


@pytest.mark.parametrize("late", [0, 2])
@pytest.mark.parametrize("part", ["step-00000002", "step-00000002/manifest.json"])
def test_what_another_rank_sees_is_waited_for(views, late, part):
    hidden = views[late] / "hidden"
    (views[late] / part).rename(hidden)
    shown = threading.Timer(0.3, lambda: hidden.rename(views[late] / part))
    shown.start()
    assert chosen(views) == ["step-00000002"] * 3
    shown.join()


def test_the_wait_ends_on_all_ranks_and_the_step_before_is_taken(views, monkeypatch, caplog):
    monkeypatch.setattr(visibility, "VISIBLE_S", 0.2)
    shutil.rmtree(views[1] / "step-00000002")
    assert chosen(views) == ["step-00000001"] * 3
    assert "step-00000002 is skipped" in caplog.text
    shutil.rmtree(views[1] / "step-00000001")
    assert all(isinstance(answer, CheckpointError) for answer in chosen(views))


def test_what_no_rank_sees_is_not_waited_for(views, monkeypatch):
    monkeypatch.setattr(visibility, "_until", lambda *arguments, **options: pytest.fail("nobody will show it"))
    for view in views:
        (view / "step-00000002" / "state.json").unlink()
    assert chosen(views) == ["step-00000001"] * 3
    assert chosen(views, committed={"step-00000009": ""}) == ["step-00000001"] * 3


def test_a_step_that_another_host_recorded_is_waited_for(views, monkeypatch):
    for view in views:
        (view / "step-00000002").rename(view / "hidden")

    def show():
        for view in views:
            (view / "hidden").rename(view / "step-00000002")

    shown = threading.Timer(0.3, show)
    shown.start()
    recorded = {"step-00000002": hash_file(views[0] / "hidden" / "manifest.json")}
    assert chosen(views, committed=recorded, from_elsewhere=True) == ["step-00000002"] * 3
    shown.join()

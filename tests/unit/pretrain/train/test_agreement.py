"""Ranks that were not started alike, as threads of one process. Over processes: `tests/dist/test_agreement.py`."""

import pytest
from one_process import SETTINGS
from rank_threads import on_threads
from read_only import make_read_only

import pretrain
from pretrain.errors import ConfigError
from pretrain.train import agreement
from pretrain.train.agreement import check_agreement, check_directory, check_places_to_save, check_started_alike
from pretrain.train.run_dir.base import RunConfig, RunDirectory

FACTS = {"seed": 0, "optim.lr": 1e-3}


def refusals(size, facts_of):
    """Return the message of each rank, None where it was not refused."""
    found = on_threads(size, lambda world: check_agreement(facts_of(world.rank), world))
    assert all(answer is None or isinstance(answer, ConfigError) for answer in found)
    return [answer and str(answer) for answer in found]


def test_ranks_that_are_alike_are_not_refused():
    assert refusals(3, lambda rank: dict(reversed(FACTS.items())) if rank == 1 else FACTS) == [None] * 3


@pytest.mark.parametrize("stranger", [0, 1, 3])
def test_the_one_that_differs_is_named_beside_one_of_the_many(stranger):
    told, *others = refusals(4, lambda rank: FACTS | {"seed": int(rank == stranger)})
    assert others == [told] * 3
    head, line = told.splitlines()
    assert head.startswith("1 of 4 ranks differ")
    assert line.strip().startswith(f"rank {stranger} on host ")
    assert line.endswith(f": seed is 1, and 0 on rank {int(stranger == 0)}")


def test_many_that_differ_are_counted_from_the_first_on(monkeypatch):
    monkeypatch.setattr(agreement, "SHOWN_RANKS", 2)
    monkeypatch.setattr(agreement, "SHOWN_FACTS", 1)
    told = refusals(7, lambda rank: FACTS | ({"seed": rank, "optim.lr": 0.5} if rank > 3 else {}))[0]
    head, *lines = [line.strip() for line in told.splitlines()]
    assert head.startswith("3 of 7 ranks differ")
    assert [line[:6] for line in lines] == ["rank 4", "rank 5", "and 1 "]
    assert "seed is 4, and 0 on rank 0" in lines[0] and "optim.lr" not in lines[0] and lines[0].endswith("and 1 more")


def test_ranks_that_see_another_directory_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(agreement, "VISIBLE_S", 0.0)
    RunDirectory.claim(RunConfig(name="shared", root=str(tmp_path)))
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "lock").write_text("pid 1 on host a since 2026-01-01 00:00:00\n")
    for places, strangers in ((["shared"] * 3, []), (["shared", "own", "nowhere"], [1, 2])):
        found = on_threads(3, lambda world, places=places: check_directory(tmp_path / places[world.rank], world))
        assert [isinstance(answer, ConfigError) for answer in found] == [bool(strangers)] * 3
        for rank in strangers:
            assert f"rank {rank} on host" in str(found[0]) and f"{tmp_path}/{places[rank]}" in str(found[0])
        assert "rank 0 on host" not in str(found[0])


def test_a_rank_that_cannot_save_is_named_on_all(tmp_path, monkeypatch):
    (tmp_path / "here" / "checkpoints").mkdir(parents=True)
    (tmp_path / "there").mkdir()
    make_read_only(tmp_path / "here" / "checkpoints", monkeypatch)
    places = ["there", "there", "here"]
    for several in (places, places[:2]):
        found = on_threads(
            len(several), lambda world, several=several: check_places_to_save(tmp_path / several[world.rank], world)
        )
        assert [isinstance(answer, ConfigError) for answer in found] == [len(several) == 3] * len(several)
        for answer in filter(None, found):
            head, line = str(answer).splitlines()
            assert "cannot save" in head and line.strip().startswith("rank 2 on host ")
            assert f"{tmp_path}/here/checkpoints: no file can be made (Read-only file system)" in line


def test_a_run_that_cannot_save_is_refused_as_it_starts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = pretrain.configure(*SETTINGS)
    directory = RunDirectory.claim(cfg.run)
    (directory.path / "checkpoints").mkdir(exist_ok=True)
    assert on_threads(2, lambda world: check_started_alike(cfg, ["pretrain"], world)) == [None] * 2
    make_read_only(directory.path / "checkpoints", monkeypatch)
    found = on_threads(2, lambda world: check_started_alike(cfg, ["pretrain"], world))
    assert [isinstance(answer, ConfigError) and "cannot save" in str(answer) for answer in found] == [True] * 2
    directory.close()

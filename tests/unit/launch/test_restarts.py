"""Restarts of ranks: after which ends, how often, and with how many of them; the ends are made up."""

import pytest

from launch import restarts
from launch.ranks import Outcome
from launch.restarts import Elastic, sizes_that_fit
from pretrain.errors import ConfigError

LOST, HUNG = Outcome(7, lost=1), Outcome(6, lost=1)


@pytest.fixture
def elastic(monkeypatch):
    """Return what runs starts that end as is said, each with its newest checkpoint, and the starts and pauses."""
    pauses = []
    monkeypatch.setattr(restarts.time, "sleep", pauses.append)

    def call(*ends, ranks=2, steps=(), **fields):
        starts, left, newest = [], list(ends), [""]

        def start(places, again):
            starts.append((list(places), again))
            newest[0] = steps[len(starts) - 1] if steps else ""
            return left.pop(0)

        settings = {"max_restarts": 3, "fewest": ranks, "refuse": lambda count: None} | fields
        code = Elastic(start=start, newest=lambda: newest[0], **settings).run(ranks)
        assert [again for _, again in starts] == [False, *[True] * (len(starts) - 1)]
        return code, [places for places, _ in starts], pauses

    return call


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 5, 8, 85])
def test_other_ends_than_a_lost_or_silent_rank_are_passed_on(elastic, code):
    assert elastic(Outcome(code)) == (code, [[0, 1]], [])


@pytest.mark.parametrize("end", [LOST, HUNG])
def test_a_lost_rank_is_started_again_until_the_run_is_done(elastic, end):
    assert elastic(end, Outcome(7), Outcome(0)) == (0, [[0, 1]] * 3, [1, 2])


def test_nothing_is_started_again_unless_it_is_said_or_once_somebody_asked_to_stop(elastic):
    assert elastic(LOST, max_restarts=0) == (7, [[0, 1]], [])
    assert elastic(LOST._replace(asked=True)) == (7, [[0, 1]], [])


def test_restarts_without_a_new_checkpoint_are_counted_and_any_other_begins_the_count_again(elastic, capsys):
    none = [LOST] * 4
    assert elastic(*none)[:2] == (7, [[0, 1]] * 4)
    assert capsys.readouterr().err.splitlines()[-1] == "3 restarts brought no new checkpoint: it ends"
    steps = ["", "", "", "a", "a", "a", "a"]
    code, starts, pauses = elastic(*[LOST] * 7, steps=steps)
    assert (code, len(starts)) == (7, 7)
    assert pauses[-6:] == [1, 2, 4, 1, 2, 4]


def test_a_pause_has_a_bound(elastic):
    assert elastic(*[LOST] * 10, max_restarts=9)[2] == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_a_rank_that_is_lost_twice_at_the_same_checkpoint_is_left_out(elastic, capsys):
    lost = Outcome(7, lost=2)
    assert elastic(lost, lost, Outcome(0), ranks=4, fewest=2)[1] == [[0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 3]]
    assert "rank 2 of 4 cannot start again\nit goes on with 3 of 4 ranks\n" in capsys.readouterr().err
    others = [Outcome(7, lost=number) for number in (2, 1, 2)]
    assert elastic(*others, Outcome(0), ranks=4, fewest=2)[1] == [[0, 1, 2, 3]] * 4
    moved = ["a", "b", "c"]
    assert elastic(lost, lost, Outcome(0), ranks=4, fewest=2, steps=moved)[1] == [[0, 1, 2, 3]] * 3
    again = [lost, lost, lost, lost, Outcome(0)]  # the rank in the third place, whatever place that is
    assert elastic(*again, ranks=4, fewest=1)[1][-1] == [0, 1]


def test_a_place_whose_device_is_dead_is_left_out_at_once(elastic):
    assert elastic(LOST, Outcome(0), ranks=3, fewest=1, dead=lambda places: [0])[1] == [[0, 1, 2], [1, 2]]


def even(count):
    if 8 % count:
        raise ConfigError(f"train.batch_size=8: no multiple of {count}")


@pytest.mark.parametrize("fewest", [1, 2])
def test_the_next_number_of_ranks_that_can_share_a_step_is_taken(elastic, capsys, fewest):
    lost = Outcome(7, lost=0)
    assert elastic(lost, lost, Outcome(0), ranks=4, fewest=fewest, refuse=even)[1][-1] == [1, 2]
    told = capsys.readouterr().err
    assert "3 ranks cannot go on: train.batch_size=8: no multiple of 3\nit goes on with 2 of 4 ranks\n" in told


def test_where_no_number_of_ranks_is_left_the_end_says_so(elastic, capsys):
    lost = Outcome(7, lost=0)
    assert elastic(lost, lost, ranks=4, fewest=3, refuse=even)[:2] == (7, [[0, 1, 2, 3]] * 2)
    assert capsys.readouterr().err.splitlines()[-1].startswith("min_nproc=3: no number of the ranks that are left can")


def test_a_number_that_nothing_could_go_on_with_is_refused_before_the_first_start():
    assert sizes_that_fit("min_nproc", 1, 4, even) == [4, 2, 1]
    assert sizes_that_fit("min_nproc", 4, 4, even) == [4]
    with pytest.raises(ConfigError, match=r"min_nproc=3: a run could not go on with any size from it to 3: .* of 3"):
        sizes_that_fit("min_nproc", 3, 4, even)
    with pytest.raises(ConfigError, match=r"^train\.batch_size=8: no multiple of 3"):
        sizes_that_fit("min_nproc", 1, 3, even)

"""Detours as arithmetic and as a file: what is skipped, what may follow, what a resumed run must find."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.errors import CheckpointError, ConfigError
from pretrain.train.detours.base import Detour, add_detour, data_step, fault, fingerprint, read_detours, taken_up


def detour(step, first, end):
    return Detour(step=step, first=first, end=end, reason="a spike", automatic=False)


RANGES = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9), st.integers(0, 7)), max_size=6)


@given(RANGES)
def test_data_steps_are_those_that_no_detour_skips_and_none_before_its_step_changes(drawn):
    taken: tuple[Detour, ...] = ()
    for step, length, later in drawn:
        begins = data_step(taken, step) + later
        new = detour(step, begins, begins + length)
        if fault(taken, new):
            assert all(any(each.first <= at < each.end for each in taken) for at in range(begins, begins + length))
            continue
        before = [data_step(taken, each) for each in range(step)]
        taken = (*taken, new)
        assert [data_step(taken, each) for each in range(step)] == before
    kept = [at for at in range(200) if not any(each.first <= at < each.end for each in taken)]
    assert [data_step(taken, step) for step in range(60)] == kept[:60]


@pytest.mark.parametrize(
    ("new", "said"),
    [
        (detour(10, 12, 14), "begins before data step 14; step 10 has trained on"),
        (detour(6, 8, 12), "is skipped already"),
        (detour(6, 9, 9), "END after FIRST"),
        (detour(-1, 9, 10), "from 0 on"),
    ],
)
def test_what_cannot_follow_is_refused_and_leaves_the_file_as_it_was(tmp_path, new, said):
    add_detour(tmp_path, detour(7, 8, 12))
    before = (tmp_path / "detours.json").read_bytes()
    with pytest.raises(ConfigError, match=said):
        add_detour(tmp_path, new)
    assert (tmp_path / "detours.json").read_bytes() == before
    add_detour(tmp_path, detour(5, 11, 14))
    assert [each.end for each in read_detours(tmp_path)] == [12, 14]


def test_a_file_that_was_changed_is_refused(tmp_path):
    assert read_detours(tmp_path) == ()
    add_detour(tmp_path, detour(7, 8, 12))
    path = tmp_path / "detours.json"
    text = path.read_text()
    for changed in (
        text.replace('"end": 12', '"end": 13'),  # against the seal
        text[:50],
        json.dumps({"format": 2, "detours": []}),
        json.dumps({"format": 1, "detours": [vars(detour(9, 8, 12))]}),
        json.dumps({"format": 1, "detours": [{**vars(detour(7, 8, 12)), "first": "8"}]}),
    ):
        path.write_text(changed)
        with pytest.raises(CheckpointError, match=r"detours\.json: not readable .* restore it"):
            read_detours(tmp_path)


def test_a_saved_step_takes_up_detours_that_began_there_or_later():
    first, second, third = detour(7, 8, 12), detour(20, 30, 31), detour(15, 22, 24)

    def saved(step, *known):
        return {"step": step, "resume": fingerprint(known)}

    now = fingerprint([first, second, third])["detours"]
    assert taken_up(saved(5), now) == taken_up({"step": 7}, now) == now
    assert taken_up(saved(15, first), now) == taken_up(saved(90, first, second, third), now) == now
    for step, known in ((16, [first]), (8, []), (21, [first, second]), (9, [second]), (90, [first, second, second])):
        assert taken_up(saved(step, *known), now) == fingerprint(known)["detours"] != now
    assert taken_up({"step": 7, "resume": {"detours": 3}}, now) == 3

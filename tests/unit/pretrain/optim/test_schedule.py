"""Schedules against tables worked out by hand, and the promises that hold for every schedule.

Nothing here trains: a schedule is a function of the step.
"""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.optim.schedule import (
    ConstantSchedule,
    CooldownSchedule,
    CooldownShape,
    CosineSchedule,
    Decay,
    InverseSqrtSchedule,
    LearningRate,
    LinearSchedule,
    WsdSchedule,
)

SQRT_HALF = 0.70710678118654752

TABLES = [
    (ConstantSchedule(), 3, [1.0, 1.0, 1.0]),
    (ConstantSchedule(warmup_steps=3), 5, [0.25, 0.5, 0.75, 1.0, 1.0]),
    # Eighths of half a period: cos(k pi / 4) = 1, 0.7071, 0, -0.7071.
    (CosineSchedule(floor=0.0), 4, [1.0, (1 + SQRT_HALF) / 2, 0.5, (1 - SQRT_HALF) / 2]),
    (CosineSchedule(warmup_steps=1, floor=0.2), 5, [0.5, 1.0, 0.6 + 0.4 * SQRT_HALF, 0.6, 0.6 - 0.4 * SQRT_HALF]),
    (LinearSchedule(), 4, [1.0, 0.75, 0.5, 0.25]),
    (LinearSchedule(warmup_steps=2, floor=0.5), 7, [1 / 3, 2 / 3, 1.0, 0.9, 0.8, 0.7, 0.6]),
    (
        WsdSchedule(warmup_steps=1, decay_share=0.5),
        8,
        [0.5, 1.0, 1.0, 1.0, 1.0, 0.5, 1 - SQRT_HALF, 1 - math.sqrt(0.75)],
    ),
    (WsdSchedule(decay_share=0.4, decay=Decay.linear, floor=0.2), 10, [1.0] * 7 + [0.8, 0.6, 0.4]),
    (CooldownSchedule(from_step=3, shape=CooldownShape.linear, final=0.25), 7, [1.0] * 4 + [0.8125, 0.625, 0.4375]),
    (
        CooldownSchedule(warmup_steps=1, from_step=2, final=0.5),
        6,
        [0.5, 1.0, 1.0, 0.75, 1 - SQRT_HALF / 2, 1 - math.sqrt(0.75) / 2],
    ),
    (InverseSqrtSchedule(), 4, [1.0, SQRT_HALF, 1 / math.sqrt(3), 0.5]),
    (
        InverseSqrtSchedule(warmup_steps=1),
        8,
        [0.5, 1.0, math.sqrt(2 / 3), SQRT_HALF, *(math.sqrt(2 / n) for n in (5, 6, 7, 8))],
    ),
    # A fifth of 2 steps rounds to none: no decay at all.
    (WsdSchedule(), 2, [1.0, 1.0]),
]


@pytest.mark.parametrize(("schedule", "total", "table"), TABLES)
def test_table_by_hand(schedule, total, table):
    multiplier = schedule.build(total)
    assert [multiplier(step) for step in range(total)] == pytest.approx(table, abs=1e-12)


@given(
    kind=st.sampled_from([CosineSchedule, LinearSchedule, WsdSchedule]),
    total=st.integers(1, 60),
    warmup=st.integers(0, 60),
    floor=st.floats(0, 1),
)
def test_rises_then_falls_and_stays_between_floor_and_peak(kind, total, warmup, floor):
    warmup = min(warmup, total - round(0.2 * total) if kind is WsdSchedule else total)
    multiplier = kind(warmup_steps=warmup, floor=floor).build(total)
    values = [multiplier(step) for step in range(total)]
    assert all(0 < value <= 1 or floor == 0 for value in values)
    assert values[:warmup] == sorted(values[:warmup])
    assert values[warmup:] == sorted(values[warmup:], reverse=True)
    assert values[0] == (1 / (warmup + 1) if warmup else 1.0)
    if warmup < total:
        assert values[warmup] == 1.0
        assert multiplier(total) == multiplier(total + 1000) == floor


def test_the_inverse_square_root_is_that_of_the_paper_whatever_the_length():
    """The rate of Vaswani et al. 2017, equation 3, over its largest: there steps count from 1, and warm-ups, too."""
    short, long = (InverseSqrtSchedule(warmup_steps=9).build(total) for total in (40, 1000))
    by_paper = [min(step**-0.5, step * 10**-1.5) / 10**-0.5 for step in range(1, 1001)]
    assert [long(step) for step in range(1000)] == pytest.approx(by_paper, abs=1e-12)
    assert [short(step) for step in range(40)] == [long(step) for step in range(40)]


def test_same_until_the_decay_whatever_the_length():
    short, long = (WsdSchedule(warmup_steps=5).build(total) for total in (100, 1000))
    assert [short(step) for step in range(80)] == [long(step) for step in range(80)]


@given(
    begin=st.integers(0, 50),
    length=st.integers(1, 50),
    final=st.floats(0, 1),
    shape=st.sampled_from(CooldownShape),
)
def test_a_cooldown_begins_and_ends_exactly_where_it_says(begin, length, final, shape):
    multiplier = CooldownSchedule(from_step=begin, shape=shape, final=final).build(begin + length)
    assert [multiplier(step) for step in range(begin + 1)] == [1.0] * (begin + 1)
    assert multiplier(begin + length) == final
    curve = (lambda share: 1 - share) if shape is CooldownShape.linear else (lambda share: 1 - share**0.5)
    expected = [final + (1 - final) * curve(step / length) for step in range(1, length)]
    assert [multiplier(begin + step) for step in range(1, length)] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        (CooldownSchedule(), r"from_step=null: .* or branch_from=RUN@STEP"),
        (CooldownSchedule(from_step=10), r"from_step=10: leaves nothing to cool down, the run has 10 steps"),
        (CooldownSchedule(warmup_steps=5, from_step=4), r"from_step=4: lies in the warm-up of 5 steps"),
        (CooldownSchedule(warmup_ratio=0.5, from_step=4), r"from_step=4: lies in the warm-up of 5 steps"),
    ],
)
def test_refuses_a_cooldown_that_does_not_fit(schedule, said):
    with pytest.raises(ValueError, match=rf"schedule\.{said}"):
        schedule.build(10)


def test_warmup_may_fill_the_run():
    multiplier = CosineSchedule(warmup_steps=2).build(2)
    assert [multiplier(step) for step in range(2)] == pytest.approx([1 / 3, 2 / 3])


@pytest.mark.parametrize(
    ("schedule", "total"),
    [(CosineSchedule(warmup_steps=11), 10), (ConstantSchedule(warmup_steps=11), 10), (WsdSchedule(warmup_steps=9), 10)],
)
def test_refuses_phases_that_do_not_fit(schedule, total):
    with pytest.raises(ValueError, match=r"schedule\.warmup_steps=\d+: .* 10 steps"):
        schedule.build(total)


@pytest.mark.parametrize(
    ("key", "make"),
    [
        ("schedule.warmup_steps=-1", lambda: LinearSchedule(warmup_steps=-1)),
        ("schedule.floor=1.5", lambda: CosineSchedule(floor=1.5)),
        ("schedule.floor=-0.1", lambda: LinearSchedule(floor=-0.1)),
        ("schedule.from_step=-1", lambda: CooldownSchedule(from_step=-1)),
        ("schedule.final=1.5", lambda: CooldownSchedule(from_step=1, final=1.5)),
        ("schedule.decay_share=1.1", lambda: WsdSchedule(decay_share=1.1)),
    ],
)
def test_refuses_values_by_name(key, make):
    with pytest.raises(ValueError, match=key):
        make()


@pytest.mark.parametrize(
    ("ratio", "total", "steps"),
    # 11.28, 12.5 (to the even number, as Python rounds), 13.5, 7.6 and 0.6 steps
    [(0.1, 250, 25), (0.06, 188, 11), (0.1, 125, 12), (0.1, 135, 14), (0.04, 190, 8), (0.06, 10, 1), (1.0, 7, 7)],
)
def test_a_share_of_the_steps_warms_up(ratio, total, steps):
    shared, counted = LinearSchedule(warmup_ratio=ratio).build(total), LinearSchedule(warmup_steps=steps).build(total)
    assert [shared(step) for step in range(total)] == [counted(step) for step in range(total)]
    assert shared(steps - 1) == steps / (steps + 1)
    assert steps == total or shared(steps) == 1.0


@pytest.mark.parametrize(
    ("share", "total", "steps"),
    [(0.2, 10, 2), (0.2, 13, 3), (0.25, 10, 2), (0.25, 14, 4), (0.1, 6, 1), (0.1, 4, 0), (1.0, 3, 3)],  # 2.6, 2.5, ...
)
def test_a_share_of_the_steps_decays(share, total, steps):
    multiplier = WsdSchedule(decay_share=share, decay=Decay.linear).build(total)
    by_hand = [1.0] * (total - steps) + [(steps - number) / steps for number in range(steps)]
    assert [multiplier(step) for step in range(total)] == pytest.approx(by_hand, abs=1e-12)
    assert WsdSchedule(decay_share=share).decay_start(total) == total - steps


def test_no_share_is_no_warmup():
    assert LinearSchedule(warmup_ratio=0.0).build(40)(0) == 1.0


# A run that took 4 of 4 steps, or 2 of 4, at a peak of 1: how it was planned, how it goes on, and what is said of that.
COSINE, LINEAR, CONSTANT = CosineSchedule(floor=0.0), LinearSchedule(), ConstantSchedule()
LENGTH = "its schedule now reaches to train.steps="
CHANGES = [
    # The last step took (1 + cos(3/4 pi)) / 2 = 0.146, and step 5 of 8 takes (1 + cos(pi / 2)) / 2.
    (4, (COSINE, 4), (1.0, COSINE, 8), ["rises from 1.46e-01 to 5.00e-01 at step 5", f"{LENGTH}8, before to 4"]),
    (4, (LINEAR, 4), (1.0, LINEAR, 8), ["rises from 2.50e-01 to 5.00e-01 at step 5", "optim.lr=2.50e-01 holds it"]),
    (4, (WsdSchedule(decay_share=0.5), 4), (1.0, WsdSchedule(decay_share=0.5), 8), ["rises from 2.93e-01 to 1.00e+00"]),
    (2, (LINEAR, 4), (1.0, LINEAR, 3), ["falls from 7.50e-01 to 3.33e-01 at step 3", f"{LENGTH}3, before to 4"]),
    (2, (LINEAR, 4), (3.0, LINEAR, 4), ["rises from 7.50e-01 to 1.50e+00", "optim.lr or the schedule changed"]),
    (2, (CONSTANT, 4), (1.0, ConstantSchedule(warmup_steps=4), 4), ["falls from 1.00e+00 to 6.00e-01", "changed"]),
    (2, (CONSTANT, 4), (1.0, ConstantSchedule(warmup_ratio=1.0), 4), ["falls from 1.00e+00 to 6.00e-01", "changed"]),
    (2, (LINEAR, 4), (0.4, CONSTANT, 4), ["falls from 7.50e-01 to 4.00e-01", "changed"]),
    (2, (LINEAR, 4), (0.5, CONSTANT, 4), None),
    (2, (LINEAR, 4), (0.75, CONSTANT, 4), None),  # held, as is advised
    (2, (WsdSchedule(decay_share=0.5), 4), (1.0, WsdSchedule(decay_share=0.5), 8), None),
    (4, (CONSTANT, 4), (1.0, CONSTANT, 8), None),
    (2, (LINEAR, 4), (1.0, LINEAR, 4), None),
    (4, (LINEAR, 4), (9.0, LINEAR, 4), None),  # no step is left
]


@pytest.mark.parametrize(("step", "planned", "now", "said"), CHANGES)
def test_a_resumed_run_says_where_its_learning_rate_jumps(step, planned, now, said):
    found = LearningRate(*now).change(LearningRate(1.0, *planned), step)
    assert (found is None) == (said is None) and all(words in found for words in said or [])

"""When a loss counts as diverged: against a reading of the definition, with interruptions, and what is no loss."""

import json
import math
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.errors import ConfigError, Diverged
from pretrain.train.detours.divergence import Action, DivergenceConfig, Watch


def seen(watch, losses, first=0, every=5):
    """Return the line at which a watch raises, with what it says of the steps; None if it does not."""
    for number, loss in enumerate(losses, first + 1):
        try:
            watch.line(number * every, loss)
        except Diverged as error:
            return number - 1, error.first, error.step
    return None


def by_definition(losses, rise, window, lines, every=5):
    good, high = [], []
    for at, loss in enumerate(losses):
        limit = median(good[-window:]) + rise if good else math.inf
        if math.isfinite(loss) and loss <= limit:
            good, high = [*good, loss], []
        else:
            high = [*high, at]
        if len(high) == lines:
            return at, high[0] * every, (at + 1) * every
    return None


LOSSES = st.lists(st.sampled_from([1.0, 1.5, 2.0, 2.25, 3.0, 9.0, math.nan, math.inf]), max_size=30)


@given(LOSSES, st.sampled_from([0.5, 1.0]), st.integers(1, 6), st.integers(1, 4), st.integers(0, 30))
def test_a_watch_is_the_definition_also_with_a_resume_between(losses, rise, window, lines, stop):
    cfg = DivergenceConfig(rise=rise, window=window, lines=lines)
    expected = by_definition(losses, rise, window, lines)
    assert seen(Watch(cfg), losses) == expected
    before, after = Watch(cfg), Watch(cfg)
    if (found := seen(before, losses[:stop])) is None:
        after.restore({"step": stop * 5, "divergence": json.loads(json.dumps(before.progress()))})
        found = seen(after, losses[stop:], first=min(stop, len(losses)))
    assert found == expected


@pytest.mark.parametrize("stop", range(7))
def test_a_resume_between_lines_that_are_too_high_names_the_same_steps(stop):
    losses, cfg = [2.0, 1.0, 5.0, 1.0, 5.0, 5.0, 5.0], DivergenceConfig(rise=1.0, window=2)
    before, after = Watch(cfg), Watch(cfg)
    assert seen(before, losses[:stop]) is None
    after.restore({"step": stop * 5, "divergence": json.loads(json.dumps(before.progress()))})
    assert seen(after, losses[stop:], first=stop) == (6, 20, 35)


def test_nothing_is_watched_unless_asked_for():
    assert seen(Watch(DivergenceConfig()), [1.0, *[math.nan] * 9, *[99.0] * 9]) is None
    detour = DivergenceConfig(action=Action.detour)
    assert seen(Watch(detour), [1.0, 2.1, 2.1, None, 2.1]) == (4, 5, 25)
    assert seen(Watch(DivergenceConfig(action=Action.detour, rise=0)), [1.0, *[99.0] * 9]) is None


@pytest.mark.parametrize(
    "wrong", [{"rise": -1.0}, {"rise": math.nan}, {"window": 0}, {"lines": 0}, {"rewind": 0}, {"max_detours": 0}]
)
def test_impossible_settings_are_refused(wrong):
    [key] = wrong
    with pytest.raises(ConfigError, match=rf"divergence\.{key}="):
        DivergenceConfig(**wrong)


def test_a_detour_needs_steps_to_go_back_to():
    cfg = DivergenceConfig(action=Action.detour, rewind=11)
    cfg.check_saving(every=11, keep=2)
    with pytest.raises(ConfigError, match=r"divergence\.rewind=11: .* = 5 x 2 = 10 optimizer steps"):
        cfg.check_saving(every=5, keep=3)
    DivergenceConfig(rewind=11).check_saving(every=5, keep=1)

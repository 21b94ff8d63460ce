"""What is concluded from steps taken again."""

import math

import pytest

from pretrain.errors import ConfigError, NumericalError
from pretrain.train.replaying import REORDERED, SAME, Taken, recorded, verdict

RUN = {11: Taken(2.0, 1.0), 13: Taken(None, 0.0), 20: Taken(math.nan, math.inf), 21: Taken(1.5, 0.5)}


def test_steps_agree_within_the_tolerance():
    again = {**RUN, 11: Taken(2.0 * (1 + 9e-6), 1.0 - 9e-6), 12: Taken(9.0, 9.0)}
    said = verdict(RUN, again, SAME, ["torch was 1 and is 2"])
    assert said.startswith("4 recorded steps from 11 to 21 agree: losses to 9.0e-06 (of 1e-05)")
    assert "in the data or the recipe.\n  torch was 1 and is 2" in said


@pytest.mark.parametrize(
    "other",
    [
        {21: Taken(1.5 * (1 + 2e-5), 0.5)},
        {21: Taken(1.5, 0.5 * (1 + 2e-3))},
        {21: Taken(math.nan, 0.5)},
        {21: Taken(None, 0.5)},
        {21: Taken(1.5, math.inf)},
    ],
)
def test_the_first_step_that_differs_is_named(other):
    for tolerance in (SAME, REORDERED):
        with pytest.raises(NumericalError, match=r"step 21 differs: .* steps 11 to 20 agree\. .*hardware or software"):
            verdict(RUN, RUN | other, tolerance, [])
    with pytest.raises(NumericalError, match="it is the first that was recorded"):
        verdict(RUN, RUN | other | {11: Taken(7.0, 1.0)}, REORDERED, [])


def test_what_is_recorded_comes_from_lines_and_from_the_trace(tmp_path):
    lines = [
        '{"step": 10, "split": "train", "loss": 1.0, "grad_norm": 2.0}',
        '{"step": 12, "split": "validation", "loss": 3.0}',
        '{"step": 12, "split": "train", "loss": null, "grad_norm": "Infinity"}',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=r"none of the steps 13 to 20; .*log\.trace=N"):
        recorded(tmp_path, 13, 20)
    (tmp_path / "trace.jsonl").write_text('{"step": 11, "loss": "NaN", "grad_norm": 4.0}\n{"step": 19}')
    with pytest.raises(ConfigError, match=r"trace\.jsonl:2: no record of a step"):
        recorded(tmp_path, 11, 20)
    found = recorded(tmp_path, 11, 18)
    assert [*found] == [11, 12] and math.isnan(found[11].loss) and found[12] == Taken(None, math.inf)

"""Sweeps: how Hydra's values expand, and how their runs are named."""

import pytest

from launch.sweep import expand, point_text, run_name
from pretrain.errors import ConfigError


def test_one_value_of_everything_is_no_sweep():
    words = ["experiment=demo", "optim.lr=1e-3", "paths=[1,2]", "--config-dir=a,b", "~tracker", "run.name='a,b'"]
    [point] = expand(words)
    assert point == (words, {})


def test_the_last_setting_changes_fastest():
    points = expand(["experiment=demo", "optim.lr=1e-4,3e-4", "log.every=5", "seed=range(3)"])
    assert [list(point.values.values()) for point in points] == [
        ["0.0001", "0"],
        ["0.0001", "1"],
        ["0.0001", "2"],
        ["0.0003", "0"],
        ["0.0003", "1"],
        ["0.0003", "2"],
    ]
    assert points[4].overrides == ["experiment=demo", "optim.lr=0.0003", "log.every=5", "seed=1"]


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("seed=range(1,8,3)", ["1", "4", "7"]),
        ("model=choice(demo,gpt2_124m)", ["demo", "gpt2_124m"]),
        ("paths=[1,2],[3]", ["[1,2]", "[3]"]),
        ("+task.columns.text='a b','c,d'", ["'a b'", "'c,d'"]),
        ("++train.clip_norm=null,0.5", ["null", "0.5"]),
    ],
)
def test_values_keep_what_hydra_needs_to_read_them_again(word, values):
    key = word.partition("=")[0]
    points = expand([word])
    assert [point.overrides for point in points] == [[f"{key}={value}"] for value in values]
    assert [expand(point.overrides) for point in points] == [[(point.overrides, {})] for point in points]


@pytest.mark.parametrize(
    "word", ["optim.lr=interval(0,1)", "model=glob(gpt2*)", "seed=range(3,3)", "seed=[1", "a b=1,2"]
)
def test_what_cannot_be_counted_or_read_is_refused_by_its_words(word):
    with pytest.raises(ConfigError) as refused:
        expand([word])
    assert str(refused.value).startswith(f"{word}: ")


@pytest.mark.parametrize(
    ("swept", "name"),
    [
        ({"optim.lr": "0.0003", "seed": "1"}, "demo-lr-0.0003-seed-1"),
        ({"data.a.weight": "1", "data.b.weight": "2"}, "demo-data.a.weight-1-data.b.weight-2"),
        ({"+task.columns.text": "'a/b c'"}, "demo-text-a-b-c"),
        ({"train.clip_norm": "null"}, "demo-clip_norm-null"),
    ],
)
def test_runs_are_named_by_what_tells_them_apart(swept, name):
    assert run_name("demo", swept) == name


def test_a_point_in_words():
    assert point_text({"optim.lr": "1e-3", "seed": "0"}) == "optim.lr=1e-3 seed=0"

"""Batches that grow: what is refused, how they are divided, and the learning rates of the smaller ones."""

import math

import pytest

from pretrain.data.course import Course, Skip
from pretrain.distributed.world import World
from pretrain.errors import ConfigError
from pretrain.optim.schedule import CosineSchedule, LearningRate
from pretrain.train.batch_growth import BatchLr, GrowthConfig
from pretrain.train.micro_batches import found, said

SEQ_LEN = 16


def stages(*pairs):
    return [{"step": step, "size": size} for step, size in pairs]


def growing(*pairs, steps=20, **fields):
    return GrowthConfig(batch_growth=stages(*pairs), batch_size=pairs[-1][1], steps=steps, **fields)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"batch_lr": BatchLr.sqrt}, "train.batch_lr=sqrt: without train.batch_growth all batches have one size"),
        ({"batch_growth": [8, 32]}, "train.batch_growth=[8, 32]: a list of stages"),
        ({"batch_growth": [{"step": 0, "sise": 32}]}, "[{step: 0, sise: 32}]: a list of stages"),
        ({"batch_growth": stages((0, 0), (3, 32))}, "a list of stages"),
        ({"batch_growth": stages((0, 8), (True, 32))}, "a list of stages"),
        ({"batch_growth": stages((0, 32))}, "[{step: 0, size: 32}]: one size for the whole run is train.batch_size=32"),
        ({"batch_growth": stages((1, 8), (3, 32))}, "the first stage must be that of step 0"),
        ({"batch_growth": stages((0, 8), (0, 32))}, "must begin at a later step than the one before"),
        ({"batch_growth": stages((0, 40), (3, 32))}, "must have a larger size than the one before"),
        ({"batch_growth": stages((0, 8), (3, 16))}, "must end with train.batch_size=32, the size of the last batches"),
        ({"batch_growth": stages((0, 8), (9, 32)), "steps": 9}, "its last stage begins after the run of train.steps=9"),
        ({"batch_size": 0}, "train.batch_size=0: at least 1 sequence"),
    ],
)
def test_what_is_no_growth_is_refused_by_name(fields, words):
    with pytest.raises(ConfigError) as error:
        GrowthConfig(**fields)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("fields", "ranks", "words"),
    [
        (
            {"micro_batch_size": 4},
            3,
            "train.batch_growth[1].size=30: must be a multiple of train.micro_batch_size x ranks = 4 x 3 = 12; the "
            "nearest are 24 and 36",
        ),
        ({}, 2, "train.batch_growth[0].size=12: must be a multiple of train.micro_batch_size x ranks = 8 x 2 = 16"),
        ({"micro_batch_size": "auto"}, 5, "train.batch_growth[0].size=12: must be a multiple of the 5 ranks"),
        ({"micro_batch_tokens": 64}, 4, "train.batch_growth[1].size=30: must be a multiple of the 4 ranks"),
        ({"micro_batch_size": 6}, 2, "train.batch_growth[1].size=30: must be a multiple of"),
    ],
)
def test_each_size_must_be_divisible(fields, ranks, words):
    with pytest.raises(ConfigError) as error:
        said(growing((0, 12), (4, 30), (9, 60), **fields), SEQ_LEN, ranks)
    assert words in str(error.value)


@pytest.mark.parametrize(("tokens", "ranks", "size"), [(10**6, 1, 6), (10**6, 3, 2), (5 * SEQ_LEN, 1, 3), (3, 2, 1)])
def test_a_micro_batch_of_tokens_divides_every_size(tokens, ranks, size):
    assert said(growing((0, 12), (4, 30), (9, 54), micro_batch_tokens=tokens), SEQ_LEN, ranks) == size


def test_a_micro_batch_that_is_found_divides_every_size(caplog):
    grown = growing((0, 12), (4, 30), (9, 54), micro_batch_size="auto")
    passes = type("Passes", (), {"world": World.alone(), **dict.fromkeys(("strategy", "precision"), CosineSchedule())})
    passes.compilation = passes.attention = passes.strategy
    entry = found(grown, SEQ_LEN, passes, None)
    assert (entry["size"], entry["for"]["train.batch_size"]) == (6, [12, 30, 54])
    other = found(growing((0, 18), (9, 54), micro_batch_size="auto"), SEQ_LEN, passes, entry)
    assert other["size"] == 18, "of another growth it is looked for again"


@pytest.mark.parametrize(
    ("rule", "factor"), [("none", lambda share: 1.0), ("sqrt", math.sqrt), ("linear", lambda share: share)]
)
def test_the_learning_rate_follows_the_size_of_each_batch(rule, factor):
    train = growing((0, 12), (4, 30), (9, 54), steps=14, batch_lr=BatchLr(rule))
    course = Course(train.sizes, skipped=(Skip(2, 5),))  # optimizer step 2 takes data step 5, the second size
    schedule = CosineSchedule(warmup_steps=3, floor=0.1)
    rate = LearningRate(2e-3, schedule, 14, train.lr_factor(course))
    shares = [12 / 54] * 2 + [30 / 54] * 4 + [1.0] * 8
    plain = schedule.build(14)
    expected = [2e-3 * plain(step) * factor(share) for step, share in enumerate(shares)]
    assert [rate.at(step) for step in range(14)] == pytest.approx(expected, rel=1e-12)
    assert [2e-3 * rate.multiplier(step) for step in range(14)] == pytest.approx(expected, rel=1e-12)


def test_without_growth_all_is_as_it_was():
    train = GrowthConfig(batch_size=24)
    assert train.sizes == ((0, 24),)
    assert [train.lr_factor(Course(train.sizes))(step) for step in (0, 7)] == [1.0, 1.0]

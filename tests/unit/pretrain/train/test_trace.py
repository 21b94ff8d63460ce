"""The trace of single steps: what the meter would have read at each, and which steps are kept."""

import json
import random

import pytest
import torch
from toys import ALONE

from pretrain.errors import ConfigError
from pretrain.strategy.base import Update
from pretrain.train.loop import TrainState
from pretrain.train.metrics import StepMeter
from pretrain.train.trace import Trace, TracedLogConfig, TracedMeter, drop_later


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_newest_steps_of_each_save_are_what_a_meter_reads_at_each_step(tmp_path):
    draw, path = random.Random(3), tmp_path / "trace.jsonl"
    state, expected = TrainState(), {}
    trace = Trace(4, state, ALONE, path)
    traced, plain = TracedMeter(torch.device("cpu"), trace), StepMeter(torch.device("cpu"))
    for save in (3, 10, 0, 1, 4):
        for _ in range(save):
            state.step, state.step_targets = state.step + 1, draw.choice([0, 3, 5])
            for _ in range(draw.randint(1, 3)):
                nll = torch.tensor(draw.uniform(1, 9))
                traced.add(nll)
                plain.add(nll)
            norm = torch.tensor(draw.choice([draw.uniform(0, 2), float("inf")]))
            update = Update(norm, norm.isfinite().logical_not())
            traced.end_step(update, state.step_targets)
            plain.end_step(update, state.step_targets)
            reading = plain.read()
            shown = "Infinity" if reading.grad_norm == float("inf") else reading.grad_norm
            expected[state.step] = {"step": state.step, "loss": reading.loss, "grad_norm": shown}
        trace.write()
    trace.close(0)
    kept = [1, 2, 3, 10, 11, 12, 13, 14, 15, 16, 17, 18]
    assert rows(path) == [expected[step] for step in kept]
    drop_later(path, 12)
    assert [row["step"] for row in rows(path)] == kept[:6]
    drop_later(tmp_path / "other.jsonl", 12)
    assert not (tmp_path / "other.jsonl").exists()


def test_fewer_steps_than_none_are_refused():
    assert TracedLogConfig().trace == 0
    with pytest.raises(ConfigError, match=r"log\.trace=-1: 0 or more"):
        TracedLogConfig(trace=-1)

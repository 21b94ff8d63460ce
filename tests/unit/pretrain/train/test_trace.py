"""The trace of single steps: which are kept, and what becomes of them at a restart."""

import json
import math

import pytest

from pretrain.errors import ConfigError
from pretrain.train.metrics import Measured
from pretrain.train.trace import Trace, TracedLogConfig


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def measured(step):
    return Measured(None if step % 3 == 0 else 9.0 / step, math.inf if step == 11 else step / 7, step == 11, math.nan)


def row(step):
    norm = "Infinity" if step == 11 else step / 7
    return {"step": step, "loss": None if step % 3 == 0 else 9.0 / step, "grad_norm": norm}


def test_the_newest_steps_of_each_save_are_kept_until_a_run_takes_them_again(tmp_path):
    path = tmp_path / "trace.jsonl"
    trace = Trace(4, path, 0)
    step = 0
    for collected in ([1, 2], [3, 2, 5], [0], [1], [2, 2]):  # steps at a time, between two saves
        for count in collected:
            trace.add(step + count, [measured(at) for at in range(step + 1, step + count + 1)])
            step += count
        trace.write()
    trace.close(0)
    kept = [1, 2, 3, 10, 11, 12, 13, 14, 15, 16, 17, 18]
    assert rows(path) == [row(at) for at in kept]
    resumed = Trace(0, path, 12)
    resumed.add(13, [measured(13)])
    resumed.write()
    resumed.close(0)
    assert rows(path) == [row(at) for at in kept[:6]]


def test_a_run_without_a_trace_has_no_file(tmp_path):
    trace = Trace(0, tmp_path / "trace.jsonl", 12)
    trace.add(13, [measured(13)])
    trace.write()
    trace.close(0)
    assert not list(tmp_path.iterdir())


def test_fewer_steps_than_none_are_refused():
    assert TracedLogConfig().trace == 0
    with pytest.raises(ConfigError, match=r"log\.trace=-1: 0 or more"):
        TracedLogConfig(trace=-1)

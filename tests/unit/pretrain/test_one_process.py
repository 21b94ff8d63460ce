"""A notebook trains again and again in one process, which each run leaves as it was."""

import os

import pytest
from forks import Forked
from one_process import train_several


@pytest.mark.parametrize(
    "strategy", ["ddp", *(pytest.param(name, marks=pytest.mark.slow) for name in ("zero3", "fsdp2"))]
)
def test_runs_leave_their_process_as_it_was(tmp_path, strategy):
    process = Forked(call=(train_several, (strategy,)), cwd=tmp_path, env=dict(os.environ))
    assert process.wait() == 0, process.stderr[-3000:]

"""Skips what needs a fake CUDA device where there can be none, and says why."""

import pytest

from bench.fake_gpu_guard import missing


@pytest.fixture(autouse=True, scope="session")
def fake_device():
    if reason := missing():
        pytest.skip(reason)

"""Skips what needs a fake CUDA device where there can be none, and says why."""

import pytest
from fake_cuda_guard import missing


@pytest.fixture(autouse=True, scope="session")
def fake_device():
    if reason := missing():
        pytest.skip(reason)

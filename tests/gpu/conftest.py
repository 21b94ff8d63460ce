"""Marks the GPU tests, and skips them without a CUDA device; the world of one rank that some of them run in."""

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from pretrain.distributed.world import World


def pytest_collection_modifyitems(items):
    """A test with "zero" in its name or parameters runs DeepSpeed, which a GPU machine may lack."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
            elif "zero" in item.name and find_spec("deepspeed") is None:
                item.add_marker(pytest.mark.skip(reason="DeepSpeed is missing; see bench/gpu.md"))


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """One rank; what engines leave in the process is taken away."""
    variables = set(os.environ)
    yield World(rank=0, size=1, device=torch.device("cuda", 0))
    if dist.is_initialized():
        dist.destroy_process_group()
    for variable in os.environ.keys() - variables:
        del os.environ[variable]

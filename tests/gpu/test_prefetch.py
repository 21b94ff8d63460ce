"""Batches on their way to a CUDA device that is busy: whole, although their host memory is used again meanwhile."""

import numpy as np
import pytest
import torch
from corpora import write_corpus

from pretrain.data.batch import Batch, Inputs, Slots
from pretrain.data.course import Course
from pretrain.data.loader import DataConfig, StepLoader
from pretrain.data.sources.base import PreparedSource

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cuda", 0)
A_TENTH_OF_A_SECOND = 200_000_000  # cycles


def large(seed: int) -> Batch:
    """Return a batch whose copies take a while, 4 MiB of tokens: small ones may be done at the call."""
    tokens = torch.full((1 << 19,), seed)
    offsets = torch.tensor([0, len(tokens)], dtype=torch.int32)
    return Batch(tokens, tokens + 1, offsets, len(tokens), tokens + 2, len(tokens))


def test_a_batch_arrives_whole_though_its_host_memory_is_used_again():
    mine = torch.zeros(1 << 19, dtype=torch.int64).pin_memory()
    torch.cuda._sleep(A_TENTH_OF_A_SECOND)
    overwritten = mine.to(DEVICE, non_blocking=True)
    mine.fill_(-1)
    late = []
    for seed in range(8):  # each is pinned in memory that the one before gave back, if the copy is done
        late.append(large(seed).pin_memory().to(DEVICE))
    assert overwritten.eq(-1).any(), "the device was not busy: this test shows nothing"
    for seed, batch in enumerate(late):
        for name, values in vars(large(seed)).items():
            if isinstance(values, torch.Tensor):
                assert torch.equal(getattr(batch, name).cpu(), values), (seed, name)


def causal(slots: Slots) -> Inputs:
    return Inputs(slots.tokens, slots.following, slots.offsets)


def test_the_loader_pins_and_the_device_gets_what_was_read(tmp_path):
    draw = np.random.default_rng(0)
    rows = [draw.integers(100, 900, size=draw.integers(1, 200)).tolist() for _ in range(300)]
    sources = {"one": PreparedSource(path=str(write_corpus(tmp_path / "one", rows, rows[:5], per_batch=11)))}
    stream = DataConfig(seq_len=64, sources=sources).train_stream({"one": tmp_path / "one"}, seed=3)
    options = {
        "course": Course.constant(8),
        "micro_batch_size": 4,
        "rank": 0,
        "world_size": 1,
        "start_step": 0,
        "num_steps": 40,
    }
    with StepLoader(stream, causal, pin=True, **options) as pinned:
        torch.cuda._sleep(A_TENTH_OF_A_SECOND)
        found = [batch.to(DEVICE) for batches in pinned for batch in batches]
    with StepLoader(stream, causal, pin=False, **options) as plain:
        expected = [batch for batches in plain for batch in batches]
    for one, other in zip(found, expected, strict=True):
        assert one.tokens.is_cuda and one.lengths == other.lengths
        assert torch.equal(one.tokens.cpu(), other.tokens) and torch.equal(one.offsets.cpu(), other.offsets)
        assert torch.equal(one.targets.cpu(), other.targets) and torch.equal(one.positions.cpu(), other.positions)

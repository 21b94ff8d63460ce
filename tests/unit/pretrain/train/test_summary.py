"""The start-up summary: sizes of a model and of a run, counted by hand."""

from types import SimpleNamespace

import pytest
import torch
from toys import ToyObjective

from pretrain.distributed.world import World
from pretrain.strategy.base import Memory
from pretrain.train.loop import TrainConfig
from pretrain.train.summary import ModelSize, summary


def test_a_model_counts_tied_parameters_once_and_apart_those_that_are_trained():
    module = ToyObjective()
    module.flops_per_token = lambda seq_len: 10 * seq_len
    module.model.embedding.weight.requires_grad_(False)
    size = ModelSize.of(module, context=7.5, compute_share=0.4)
    assert tuple(size) == (7 * 5 + 5 * 5 + 5, 5 * 5 + 5, pytest.approx(0.4 * 75))


def test_a_run_is_described_in_tokens_steps_and_bytes():
    corpus = SimpleNamespace(num_tokens=12_000, num_documents=77)
    stream = SimpleNamespace(
        sources=[SimpleNamespace(name="books", corpus=corpus)], epochs=lambda slots: {"books": slots / 100}
    )
    text = summary(
        size=ModelSize(parameters=65, trainable=30, flops_per_token=300.0),
        memory=Memory(2**20, 2 * 2**20, 4 * 2**20),
        seq_len=16,
        train=TrainConfig(steps=50, batch_size=24, micro_batch_size=2),
        world=World(rank=0, size=3, device=torch.device("cpu")),
        stream=stream,
        held_out=SimpleNamespace(num_targets=1234, text_bytes=5678),
    )
    for words in (
        "65 parameters, 300 FLOPs a token",
        "7 MiB a rank: weights 1, gradients 2, optimizer 4",
        "384 tokens = 24 sequences x 16: 4 micro-batches of 2 on each of 3 ranks (cpu)",
        "50 steps, 19,200 tokens, 5.76e+06 FLOPs",
        "books: 12,000 tokens in 77 documents, 12.00 epochs",
        "1,234 tokens, 5,678 bytes of text",
    ):
        assert words in text

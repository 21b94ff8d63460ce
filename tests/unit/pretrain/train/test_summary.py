"""The start-up summary: sizes of a model and of a run, counted by hand."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from toys import ToyObjective

from pretrain.data.course import Course
from pretrain.data.lengths import Share
from pretrain.distributed.world import World
from pretrain.optim.schedule import ConstantSchedule, CosineSchedule, LearningRate
from pretrain.strategy.activations import Activations
from pretrain.strategy.base import Memory
from pretrain.train.batch_growth import GrowthConfig
from pretrain.train.micro_batches import Needs
from pretrain.train.summary import ModelSize, of_memory, of_rate, summary


def test_a_model_counts_tied_parameters_once_and_apart_those_that_are_trained():
    module = ToyObjective()
    module.flops_per_token = lambda seq_len: 10 * seq_len
    module.model.embedding.weight.requires_grad_(False)
    size = ModelSize.of(module, [Share(5.0, 0.5), Share(10.0, 0.5)])
    assert tuple(size) == (7 * 5 + 5 * 5 + 5, 5 * 5 + 5, 75)


@pytest.fixture
def described():
    """Return what describes a run on so many ranks over so many corpora."""

    def call(ranks, corpora, train=None):
        train = GrowthConfig(**{"steps": 50, "batch_size": 24} | (train or {}))
        corpus = SimpleNamespace(num_tokens=12_000, num_documents=77)
        stream = SimpleNamespace(
            sources=[SimpleNamespace(name=name, corpus=corpus) for name in corpora],
            epochs=lambda slots: dict.fromkeys(corpora, slots / 100),
        )
        return summary(
            directory=Path("runs/a"),
            size=ModelSize(parameters=65, trainable=30, flops_per_token=300.0),
            memory=Memory(2**20, 2 * 2**20, 4 * 2**20),
            needs=None,
            seq_len=16,
            train=train,
            course=Course(train.sizes),
            micro_batch_size=8,
            learning_rate=LearningRate(2e-3, CosineSchedule(warmup_ratio=0.1, floor=0.5), 50),
            world=World(rank=0, size=ranks, device=torch.device("cpu")),
            computing="products in fp32, attention by sdpa",
            stream=stream,
            held_out=SimpleNamespace(num_targets=1234, text_bytes=5678),
            compiled="each block by itself",
        )

    return call


def test_a_run_is_described_in_tokens_steps_and_bytes(described):
    text = described(3, ["books"])
    for words in (
        "65 parameters, 300 FLOPs a token",
        "7.0 MiB a rank: weights 1.0, gradients 2.0, optimizer 4.0",
        "384 tokens = 24 sequences x 16: 1 micro-batch of 8 on each of 3 ranks (cpu)",
        "runs/a: 50 steps, 19,200 tokens, 5.76e+06 FLOPs",
        "2.00e-03 after 5 steps of warm-up, 1.00e-03 in the last step (schedule=cosine)",
        "products in fp32, attention by sdpa",
        "books: 12,000 tokens in 77 documents, 12.00 epochs",
        "1,234 tokens, 5,678 bytes of text",
        "compile  each block by itself",
    ):
        assert words in text
    assert "3 micro-batches of 8 (cpu)" in described(1, ["books"])


def test_the_plan_of_batches_that_grow_counts_what_each_step_takes(described):
    growth = [{"step": 0, "size": 8}, {"step": 20, "size": 16}, {"step": 30, "size": 24}]
    text = described(1, ["books"], {"batch_growth": growth})
    slots = 20 * 8 + 10 * 16 + 20 * 24
    assert f"50 steps, {16 * slots:,} tokens, {300.0 * 16 * slots:.3g} FLOPs" in text
    assert "384 tokens = 24 sequences x 16: 3 micro-batches of 8 (cpu)" in text
    assert "before it 8 up to step 20, 16 up to step 30 (train.batch_lr=none)" in text
    assert f"books: 12,000 tokens in 77 documents, {slots / 100:.2f} epochs" in text


def test_the_plan_fits_on_a_screen(described):
    lines = described(1, ["books", "web", "code"]).splitlines()
    assert len(lines) <= 12 and all(len(line) <= 100 for line in lines)
    assert len({line.index(fact) for line, fact in zip(lines[7:10], ("books", "web", "code"), strict=True)}) == 1


def test_memory_is_said_in_units_in_which_it_can_be_read():
    assert of_memory(Memory(2**18, 2**18, 2**19)).startswith(
        "1.0 MiB a rank: weights 0.2, gradients 0.2, optimizer 0.5"
    )
    assert of_memory(Memory(2**33, 2**33, 2**34)).startswith("32.0 GiB a rank: weights 8.0, gradients 8.0")
    assert of_memory(Memory(2**30, 0, 2**30)).startswith("2,048 MiB a rank: weights 1,024, gradients 0")


def test_a_micro_batch_is_among_the_memory_where_it_is_predicted():
    memory = Memory(2**33, 2**33, 2**34)
    said = of_memory(memory, Needs(memory, Activations(2**34, 2**31), 2**31))
    assert said.startswith(
        "52.0 GiB a rank: weights 8.0, gradients 8.0, optimizer 16.0, activations 16.0, workspace 4.0"
    )


def test_why_micro_batches_have_so_many_tokens_is_said(described):
    tokens, size = ({"micro_batch_tokens": 130}, {"micro_batch_size": "auto"})
    assert "3 micro-batches of 8 (128 tokens of train.micro_batch_tokens=130)" in described(1, ["books"], tokens)
    assert "3 micro-batches of 8 (128 tokens, found)" in described(1, ["books"], size)


def test_a_rate_without_a_warm_up_is_its_first_and_its_last():
    assert of_rate(LearningRate(1e-3, ConstantSchedule(), 7)) == (
        "1.00e-03, 1.00e-03 in the last step (schedule=constant)"
    )

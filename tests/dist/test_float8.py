"""Runs in float8, emulated: they follow bf16 under ddp and fsdp2, and go on where the other precision stopped."""

import pytest
import torch
from ranks import column, on_ranks, run, tiny

from pretrain.data.batch import IGNORED, Batch
from pretrain.distributed.world import World
from pretrain.init_from import InitialWeights
from pretrain.models.attention.sdpa import sdpa
from pretrain.models.decoder import DecoderConfig
from pretrain.objectives.causal_lm import CausalLMConfig
from pretrain.optim.adamw import AdamWConfig
from pretrain.strategy.compile import CompileConfig
from pretrain.strategy.ddp import DDPConfig
from pretrain.strategy.float8 import FP8
from pretrain.strategy.fsdp2 import FSDP2Config
from pretrain.strategy.precision import BF16

pytestmark = pytest.mark.slow
EMULATED = FP8(emulate=True, min_width=1)
VOCABULARY, FOLLOWERS, STEPS = 64, 3, 60
LENGTHS = ([13, 32, 7], [29, 5, 24])  # of the two halves of a global batch


def batch_of(lengths: list[int], seed: int) -> Batch:
    """Return documents in which each token is one of the three followers of the one before: there is much to learn."""
    draw = torch.Generator().manual_seed(seed)
    follow = torch.randint(VOCABULARY, (VOCABULARY, FOLLOWERS), generator=torch.Generator().manual_seed(0))
    documents = []
    for length in lengths:
        tokens = [int(torch.randint(VOCABULARY, (), generator=draw))]
        while len(tokens) < length:
            tokens.append(int(follow[tokens[-1], torch.randint(FOLLOWERS, (), generator=draw)]))
        documents.append(torch.tensor(tokens))
    end = torch.tensor([IGNORED])
    return Batch(
        tokens=torch.cat(documents),
        positions=torch.cat([torch.arange(length) for length in lengths]),
        offsets=torch.tensor([0, *lengths]).cumsum(0).int(),
        max_len=max(lengths),
        targets=torch.cat([torch.cat([document[1:], end]) for document in documents]),
        num_targets=sum(lengths) - len(lengths),
        lengths=lengths,
    )


def course(world, cfg, precision, steps=STEPS) -> list[float]:
    """Return the loss of each step, in nats a target."""
    with torch.device("meta"):
        config = DecoderConfig(max_seq_len=32, width=128, layers=2, heads=4)
        module = CausalLMConfig().build(config.build(vocab_size=VOCABULARY, attend=sdpa))
    initial = InitialWeights(module, 1)
    strategy = cfg.build(world=world, precision=precision, compilation=CompileConfig())
    wrapped = strategy.setup(module, AdamWConfig(lr=1e-3).build)
    strategy.load_fragments(initial)
    targets, losses = sum(map(sum, LENGTHS)) - sum(map(len, LENGTHS)), []
    for step in range(steps):
        own = [batch_of(lengths, seed=2 * step + half) for half, lengths in enumerate(LENGTHS)][
            world.rank :: world.size
        ]
        nll = torch.zeros((), dtype=torch.float64)
        for number, batch in enumerate(own, start=1):
            with strategy.micro_step(last=number == len(own)):
                loss = wrapped(batch)
                strategy.backward(loss.total * world.size / targets)
            nll += loss.nll
        strategy.step(1.0, 1.0)
        losses.append(world.sum_tensor(nll).item() / targets)
    return losses


def check_courses(world, expected):
    for cfg, steps in ((FSDP2Config(), STEPS), (DDPConfig(), STEPS // 3)):
        found = course(world, cfg, EMULATED, steps)
        assert found != expected[:steps]
        assert found == pytest.approx(expected[:steps], rel=0.02), cfg


def test_sixty_steps_on_two_ranks_follow_bf16_on_one():
    expected = course(World.alone(), DDPConfig(), BF16())
    assert expected[-1] < 0.6 * expected[0]
    on_ranks(2, check_courses, expected)


def test_a_run_goes_on_in_the_other_precision_and_says_so(place):
    fp8 = ["precision=fp8", "precision.emulate=true", "precision.min_width=1"]

    def go(name, steps, *precision):
        settings = ("schedule=constant", "schedule.warmup_steps=1", f"train.steps={steps}", "eval.every=2", *precision)
        return run(*tiny(name, *settings), cwd=place).stderr

    said = [go("either", 2, "precision=bf16"), go("either", 4, *fp8), go("either", 6, "precision=bf16")]
    go("half", 6, "precision=bf16")
    either, half = column(place / "runs/either", "loss"), column(place / "runs/half", "loss")
    assert [either[step] for step in range(1, 7)] == pytest.approx([half[step] for step in range(1, 7)], rel=0.02)
    assert either[1] == half[1] and either[3] != half[3]
    assert "float8: 8 of the 8 linear layers of the blocks" in said[1]
    assert all("changed since the run's last start: precision" in text for text in said[1:])

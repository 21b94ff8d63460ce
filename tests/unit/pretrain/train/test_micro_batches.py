"""Micro-batches: their size by the rule, by a search that is planned and tried, and by the record of the run."""

import pytest
import torch
from small_models import VOCAB_SIZE

from pretrain.data.batch import Batch
from pretrain.distributed.world import World
from pretrain.errors import ConfigError, ResourceError
from pretrain.models.attention.sdpa import SdpaConfig, sdpa
from pretrain.models.decoder import DecoderConfig
from pretrain.objectives.causal_lm import CausalLMConfig
from pretrain.objectives.cross_entropy import chunk_for
from pretrain.objectives.denoising import DenoisingConfig
from pretrain.objectives.masked_lm import MaskedLMConfig
from pretrain.objectives.span_corruption import Denoiser, SpanCorruptionConfig
from pretrain.optim.adamw import AdamWConfig
from pretrain.strategy.base import Memory
from pretrain.strategy.compile import CompileNone
from pretrain.strategy.ddp import DDPConfig
from pretrain.strategy.fsdp2 import FSDP2Config
from pretrain.strategy.precision import BF16
from pretrain.strategy.zero import ZeROConfig
from pretrain.train import micro_batches
from pretrain.train.batch_growth import GrowthConfig
from pretrain.train.micro_batches import CPU_TOKENS, Passes, divisors, found, measured_slots, said

SEQ_LEN = 16


@pytest.mark.parametrize(
    ("batch", "tokens", "ranks", "slots"),
    [
        (24, 16 * 8, 1, 8),
        (24, 16 * 8 - 1, 1, 6),  # 7 do not divide 24
        (24, 16 * 8, 3, 8),
        (24, 16 * 8, 8, 3),
        (14, 16 * 6, 2, 1),  # 7 for each rank
        (24, 3, 1, 1),
        (24, 10**9, 2, 12),
    ],
)
def test_tokens_are_a_bound_and_slots_divide_the_share_of_a_rank(batch, tokens, ranks, slots):
    assert said(GrowthConfig(batch_size=batch, micro_batch_tokens=tokens), SEQ_LEN, ranks) == slots


def test_what_is_said_in_sequences_is_taken_as_it_is():
    assert said(GrowthConfig(batch_size=32), SEQ_LEN, 2) == 8
    assert said(GrowthConfig(batch_size=30, micro_batch_size=5), SEQ_LEN, 2) == 5
    assert said(GrowthConfig(batch_size=30, micro_batch_size="auto"), SEQ_LEN, 2) is None
    assert [measured_slots(GrowthConfig(micro_batch_size=size), SEQ_LEN, 7) for size in (3, "auto", None)] == [3, 7, 8]
    assert measured_slots(GrowthConfig(micro_batch_tokens=50), SEQ_LEN, 7) == 3


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"micro_batch_size": 0}, "train.micro_batch_size=0: at least 1 sequence, auto or null"),
        ({"micro_batch_size": "most"}, "train.micro_batch_size=most: at least 1 sequence, auto or null"),
        ({"micro_batch_tokens": 0}, "train.micro_batch_tokens=0: at least 1 token, or null"),
        ({"micro_batch_tokens": 9, "micro_batch_size": "auto"}, "train.micro_batch_size=auto says it as well"),
        (
            {"micro_batch_tokens": 9},
            "train.batch_size=32: must be a multiple of the 3 ranks; the nearest are 30 and 33",
        ),
        ({"micro_batch_size": "auto"}, "train.batch_size=32: must be a multiple of the 3 ranks"),
        ({}, "train.micro_batch_size x ranks = 8 x 3 = 24; the nearest are 24 and 48"),
    ],
)
def test_what_cannot_be_divided_is_refused(fields, words):
    with pytest.raises(ConfigError) as error:
        said(GrowthConfig(**fields), SEQ_LEN, 3)
    assert words in str(error.value)


class Told(Passes):
    """Passes that need a byte a sequence, and fit up to a number of them."""

    fits, tried = 0, ()

    def needs(self, sequences):
        return type("Needs", (), {"total": sequences})

    def fit(self, sequences, *, passes):
        self.tried.append((sequences, passes))
        return sequences <= self.fits


@pytest.fixture
def told():
    """Return passes of one process on a CPU."""

    def call(kind=Told, strategy=None):
        return kind(
            build=lambda attend: small(attend or sdpa),
            densest=lambda size: Batch.of(CausalLMConfig().densest(size, SEQ_LEN)),
            memory=Memory(1000, 2000, 3000),
            strategy=strategy or DDPConfig(),
            precision=BF16(),
            compilation=CompileNone(),
            attention=SdpaConfig(),
            make_optimizer=AdamWConfig().build,
            world=World.alone(),
        )

    return call


def small(attend):
    config = DecoderConfig(max_seq_len=SEQ_LEN, width=24, layers=4, heads=4)
    with torch.device("meta"):
        return CausalLMConfig(chunk_tokens=3).build(config.build(vocab_size=VOCAB_SIZE, attend=attend))


@pytest.mark.parametrize(
    ("free", "fits", "tried"),
    [
        (40, 99, [(24, 1)]),  # planned and tried once
        (20, 99, [(12, 2)]),  # 12 of 18 that are planned for
        (40, 3, [(24, 1), (12, 2), (8, 2), (6, 2), (4, 2), (3, 2)]),
        (0.5, 99, [(1, 2)]),  # by prediction not even one: it may be wrong
    ],
)
def test_the_largest_size_that_is_planned_is_tried_and_then_smaller_ones(told, monkeypatch, free, fits, tried):
    monkeypatch.setattr(micro_batches, "free_bytes", lambda device: free)
    Told.fits, Told.tried = fits, []
    assert told().largest(divisors(24, 24), 24) == tried[-1][0]
    assert tried == Told.tried


def test_a_size_that_larger_batches_hold_several_times_is_tried_twice(told, monkeypatch):
    monkeypatch.setattr(micro_batches, "free_bytes", lambda device: 40)
    Told.fits, Told.tried = 99, []
    assert told().largest(divisors(12, 12), 48) == 12
    assert Told.tried == [(12, 2)]


def test_a_model_of_which_not_even_one_sequence_fits_is_refused_with_what_to_set(told, monkeypatch):
    monkeypatch.setattr(micro_batches, "free_bytes", lambda device: 2**31)
    Told.fits, Told.tried = 0, []
    with pytest.raises(ResourceError, match=r"not even 1 sequence .* 2\.0 GiB; set strategy\.activation_checkpointing"):
        told().largest([4, 2, 1], 4)


def test_the_record_is_taken_until_something_changes_that_memory_depends_on(told, caplog):
    caplog.set_level("INFO", "pretrain")
    train = GrowthConfig(batch_size=12, micro_batch_size="auto")
    first = found(train, SEQ_LEN, told(), None)
    assert first["size"] == 12
    assert found(train, SEQ_LEN, told(), first | {"size": 3})["size"] == 3
    again = found(train, SEQ_LEN, told(strategy=FSDP2Config()), first | {"size": 3})
    assert (again["size"], again["for"]["strategy"]["choice"]) == (12, "fsdp2")
    assert "looked for again, as strategy changed" in caplog.text
    assert found(train, CPU_TOKENS // 5, told(), None)["size"] == 4  # of 12, and 8,192 tokens at most


def test_needs_are_what_is_held_and_what_a_pass_adds(told):
    strategy = FSDP2Config()
    passes = told(Passes, strategy)
    block = sum(parameter.numel() for parameter in small(sdpa).model.blocks[0].parameters())
    outside = sum(parameter.numel() for parameter in small(sdpa).parameters()) - 4 * block
    needs = passes.needs(5)
    assert needs.buffers == strategy.buffers(block=block, outside=outside, layers=4, ranks=1, precision=BF16())
    assert needs.total == 6000 + needs.added.saved + needs.added.workspace + needs.buffers
    assert needs.added.workspace >= 3 * VOCAB_SIZE * 4, "logits of a chunk"


@pytest.mark.parametrize(
    ("strategy", "elements", "gradients"),  # of half precision; on their way, in single precision
    [
        (DDPConfig(), 0, 0),
        (FSDP2Config(), 2 * 11 + 3 * 7 + 7, 2 * 7),  # with the gradient of the head and those of a block
        (FSDP2Config(reshard_after_forward=False), 2 * 11 + 6 * 7, 2 * 7),
        (ZeROConfig(stage=2, reduce_bucket=50, gather_bucket=30), 2 * 50 + 30, 0),
        (ZeROConfig(stage=3, reduce_bucket=50, gather_bucket=30, live_parameters=25), 2 * 50 + 30 + 25, 0),
        (ZeROConfig(stage=3, reduce_bucket=50, gather_bucket=30, live_parameters=3), 2 * 50 + 30 + 18, 0),
    ],
)
def test_gathered_weights_and_gradients_on_their_way(strategy, elements, gradients):
    found = strategy.buffers(block=7, outside=11, layers=4, ranks=2, precision=BF16())
    assert found == 2 * elements + 4 * gradients


@pytest.mark.parametrize(
    ("objective", "tokens", "targets", "source"),
    [
        (CausalLMConfig(), 100, 100, None),
        (MaskedLMConfig(), 100, 29, None),  # 15 tokens, and 6 standard deviations of 45 of all sequences
        (SpanCorruptionConfig(), 22, 22, 90),  # 15 tokens in 5 spans
        (SpanCorruptionConfig(mixture=[Denoiser(), Denoiser(density=0.5, mean_span=10.0)]), 57, 57, 90),
        (DenoisingConfig(), 100, 100, 91),  # 10 spans, and 6 standard deviations of 30
    ],
)
def test_the_densest_inputs(objective, tokens, targets, source):
    batch = Batch.of(objective.densest(3, 100))
    assert (len(batch.tokens), batch.num_targets, batch.lengths) == (3 * tokens, 3 * targets, [tokens] * 3)
    assert (batch.source and len(batch.source.tokens)) == (source and 3 * source)


def test_chunks_of_logits_are_larger_on_a_gpu():
    assert chunk_for(50_257, "cuda") * 50_257 * 4 <= 2**30
    assert chunk_for(50_257, "cpu") < chunk_for(50_257, "cuda") / 30

"""Metrics against arithmetic done another way."""

import json
import math
import mmap

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rank_threads import on_threads

from pretrain.strategy.base import Update
from pretrain.train import metrics
from pretrain.train.metrics import Measured, StepMeter, Throughput, Unlogged, bits_per_byte, memory, perplexity
from pretrain.train.peaks import peak_flops

CPU = torch.device("cpu")


class Clock:
    """A clock that the test moves."""

    now = 100.0

    def __call__(self):
        return self.now


def update(norm, skipped=False, z=None):
    return Update(torch.tensor(norm), torch.tensor(skipped), None if z is None else torch.tensor(z).double())


@given(
    steps=st.lists(
        st.tuples(
            st.lists(st.floats(0, 1e4, width=32), min_size=1, max_size=4),
            st.sampled_from([0.5, 0.75, math.inf, math.nan]),
            st.booleans(),
            st.sampled_from([math.nan, -0.5, 3.5]),
            st.integers(0, 3),
        ),
        min_size=1,
        max_size=12,
    ),
    read_every=st.integers(1, 5),
    save_every=st.integers(1, 5),
    rows=st.integers(1, 4),
)
def test_step_meter_equals_a_loop_over_floats(steps, read_every, save_every, rows):
    """However many steps lie between two readings, and however few a table holds, wherever a save lies."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "ROWS", rows)
        meter, since, new = StepMeter(CPU), [], []
        for number, (micro_batches, norm, skipped, z, targets) in enumerate(steps, 1):
            for nll in micro_batches:
                meter.add(torch.tensor(nll, requires_grad=True))
            meter.end_step(update(norm, skipped, z), targets)
            new.append(Measured(sum(micro_batches) / targets if targets else None, norm, skipped, z))
            since.append(new[-1])
            if number % read_every == 0 or number % save_every == 0:
                assert repr(meter.collect()) == repr(new)
                new = []
            if number % read_every == 0:
                check_reading(meter.read(), since)
                since = []
            if number % save_every == 0:
                kept, meter = json.dumps(meter.unlogged), StepMeter(CPU)
                meter.unlogged = Unlogged(*json.loads(kept))


def check_reading(reading, steps):
    losses, norms, skipped, z = zip(*steps, strict=True)

    def largest(values):
        return max((value for value in values if value is not None and math.isfinite(value)), default=None)

    assert (reading.loss, repr(reading.grad_norm)) == (losses[-1], repr(norms[-1]))
    assert reading.since == Unlogged(largest(losses), largest(norms), largest(z), sum(skipped))


def test_step_meter_reads_nothing_before_read():
    meta = torch.device("meta")  # holds no data: reading a value raises
    meter = StepMeter(meta)
    for _ in range(3):
        meter.add(torch.zeros((), device=meta))
        meter.end_step(Update(torch.zeros((), device=meta), torch.zeros((), device=meta)), 1)
    with pytest.raises((RuntimeError, NotImplementedError)):
        meter.read()


def test_a_step_without_targets_has_no_loss():
    meter = StepMeter(CPU)
    for nll, targets, loss in ((0.0, 0, None), (6.0, 3, 2.0)):
        meter.add(torch.tensor(nll))
        meter.end_step(update(1.0), targets)
        assert meter.read().loss == loss


def test_step_meter_sums_the_loss_over_ranks_and_nothing_else():
    meter = StepMeter(CPU)
    for nll, norm in ((5.0, 2.5), (3.0, 2.0)):
        meter.add(torch.tensor(nll))
        meter.end_step(update(norm, z=1.5), 10)
    reading = meter.read(sum_over_ranks=lambda local: local * 4)
    assert (reading.loss, reading.grad_norm) == pytest.approx((1.2, 2.0))
    assert reading.since == pytest.approx((2.0, 2.5, 1.5, 0))


def test_labels_of_sequences_count_alike_on_whatever_rank_and_in_whatever_micro_batch_they_are():
    """Uneven shares, one of none: counts are summed first and divided once, and each step begins anew."""
    steps = [
        [[(2.0, 1, 2), (0.5, 1, 1)], [(4.5, 0, 3), (0.0, 0, 0)]],  # nll, right and all labels; by rank and micro-batch
        [[(3.0, 3, 4)], [(1.0, 0, 1)]],
        [[(0.0, 0, 0)], [(0.0, 0, 0)]],
    ]

    def body(world):
        meter, readings = StepMeter(CPU), []
        for step in steps:
            for sums in step[world.rank]:
                meter.add(torch.tensor(2.0, requires_grad=True), torch.tensor(sums))
            meter.end_step(update(1.0), 4)
            readings.append(meter.read(world.sum_tensor))
        return [(reading.loss, *reading.sentences.values()) for reading in readings], readings[0].sentences.keys()

    expected = [(8 / 4, 7.0 / 6, 2 / 6), (4 / 4, 4.0 / 5, 3 / 5), (4 / 4, None, None)]
    assert on_threads(2, body) == [(expected, {"sentence_loss", "sentence_accuracy"})] * 2


def test_sequences_without_labels_have_no_figures_of_sentences():
    meter = StepMeter(CPU)
    meter.add(torch.tensor(3.0))
    meter.end_step(update(2.0), 1)
    assert meter.read().sentences == {}


def test_throughput_counts_a_resumed_run_from_where_it_resumes_and_leaves_pauses_out():
    clock = Clock()
    throughput = Throughput(step=30, tokens=3000, flops_per_token=6e6, peak_flops=1.2e10, clock=clock)
    clock.now += 2
    with throughput.paused():
        clock.now += 50
    clock.now += 3
    assert throughput.lap(40, 8000) == {"tokens_per_s": 1000.0, "step_s": 0.5, "mfu": 0.5}
    clock.now += 4
    assert throughput.lap(42, 9000) == {"tokens_per_s": 250.0, "step_s": 2.0, "mfu": 0.125}
    assert throughput.lap(42, 9000) == {"tokens_per_s": None, "step_s": None, "mfu": None}


def test_steps_that_the_device_has_yet_to_do_are_no_pause():
    clock, queued = Clock(), [7]  # seconds

    def finish():
        clock.now += queued.pop() if queued else 0

    throughput = Throughput(step=0, tokens=0, flops_per_token=6e6, peak_flops=None, finish=finish, clock=clock)
    with throughput.paused():
        clock.now += 20
        queued.append(5)  # an evaluation whose figures nobody has read
        with throughput.paused():
            clock.now += 30
    clock.now += 1
    assert throughput.lap(4, 16) == {"tokens_per_s": 2.0, "step_s": 2.0, "mfu": None}


def test_throughput_without_a_known_peak_has_no_mfu():
    clock = Clock()
    throughput = Throughput(step=0, tokens=0, flops_per_token=6e6, peak_flops=None, clock=clock)
    clock.now += 1
    assert throughput.lap(1, 10) == {"tokens_per_s": 10.0, "step_s": 1.0, "mfu": None}


@pytest.mark.parametrize(
    ("name", "dtype", "tera"),
    [
        ("NVIDIA A100-SXM4-80GB", torch.bfloat16, 312),
        ("NVIDIA A100 80GB PCIe", torch.float32, 19.5),
        ("A100-PCIE-40GB", torch.bfloat16, 312),
        ("NVIDIA A800-SXM4-80GB", torch.bfloat16, 312),
        ("NVIDIA H800", torch.bfloat16, 989.4),
        ("NVIDIA H20", torch.bfloat16, 148),  # not an H200
        ("NVIDIA GH200 480GB", torch.bfloat16, 989.4),
        ("NVIDIA GH200 144G HBM3e", torch.float32, 66.9),
        ("NVIDIA GB200", torch.bfloat16, 2500),
        ("NVIDIA H100 80GB HBM3", torch.bfloat16, 989.4),
        ("NVIDIA H100 PCIe", torch.bfloat16, 756),
        ("NVIDIA H100 NVL", torch.float16, 835.5),
        ("NVIDIA H200", torch.bfloat16, 989.4),
        ("NVIDIA H200 NVL", torch.bfloat16, 835.5),
        ("NVIDIA B200", torch.bfloat16, 2250),
        ("NVIDIA L4", torch.bfloat16, 121),
        ("NVIDIA L40S", torch.bfloat16, 362),
        ("NVIDIA A10", torch.bfloat16, 125),
        ("Tesla V100-SXM2-16GB", torch.float16, 125),
        ("Tesla V100-PCIE-32GB", torch.float32, 14),
        ("NVIDIA GeForce RTX 4090", torch.bfloat16, 165.2),
        ("AMD Instinct MI300X", torch.bfloat16, 1307.4),
        ("AMD Instinct MI250X", torch.bfloat16, 191.5),
    ],
)
def test_peak_of_known_devices(name, dtype, tera):
    assert peak_flops(name, dtype) == pytest.approx(tera * 1e12)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("cpu", torch.float32),
        ("AMD EPYC 7B13", torch.bfloat16),
        ("Tesla V100-SXM2-16GB", torch.bfloat16),  # no such unit
        ("NVIDIA A10G", torch.bfloat16),  # not an A10
        ("NVIDIA H200 Something", torch.bfloat16),
        ("NVIDIA GB300", torch.bfloat16),
        ("NVIDIA A100X", torch.bfloat16),
        ("NVIDIA A1000 40GB", torch.bfloat16),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", torch.bfloat16),  # a slice of the device
        ("NVIDIA GeForce RTX 4090 Laptop GPU", torch.bfloat16),
        ("NVIDIA A100-SXM4-80GB", torch.int8),
    ],
)
def test_no_peak_where_it_would_be_wrong(name, dtype):
    assert peak_flops(name, dtype) is None


def test_tf32_changes_the_peak_of_fp32_only_where_there_is_tf32():
    assert peak_flops("NVIDIA A100-SXM4-80GB", torch.float32, tf32=True) == 156e12
    assert peak_flops("NVIDIA A100-SXM4-80GB", torch.bfloat16, tf32=True) == 312e12
    assert peak_flops("Tesla V100-SXM2-16GB", torch.float32, tf32=True) == 15.7e12


def test_mfu_of_a_published_run():
    # PaLM 540B, arXiv 2204.02311: 238.3 K tokens/s on 6,144 TPU v4 chips of 275 TFLOP/s, 46.2 % MFU with attention.
    # FLOPs per token: 6 N + 12 L H Q T with L=118, H=48, Q=256, T=2048 (appendix B).
    flops = 6 * 540.35e9 + 12 * 118 * 48 * 256 * 2048
    clock = Clock()
    throughput = Throughput(step=0, tokens=0, flops_per_token=flops, peak_flops=6144 * 275e12, clock=clock)
    clock.now += 10
    assert throughput.lap(10, 2_383_000)["mfu"] == pytest.approx(0.462, abs=0.001)


def test_memory_of_the_cpu_is_the_resident_size():
    before = memory(CPU)["memory_bytes"]
    size = 64 * 2**20
    with mmap.mmap(-1, size) as fresh:  # new pages of the system: an allocation may be served from freed ones
        fresh[:: mmap.PAGESIZE] = b"1" * (size // mmap.PAGESIZE)
        grown = memory(CPU)["memory_bytes"]
        assert grown == pytest.approx(psutil.Process().memory_info().rss, rel=0.02)
    assert grown - before > 0.9 * size


def test_perplexity_is_safe():
    assert perplexity(math.log(50_000)) == pytest.approx(50_000)
    assert perplexity(1e6) == math.inf
    assert math.isnan(perplexity(math.nan))


def test_bits_per_byte_of_known_models():
    # A uniform model over 256 bytes spends 8 bits on each; over 65,536 pairs of bytes as well, in half as many targets.
    assert bits_per_byte(math.log(256), 1000, 1000) == pytest.approx(8)
    assert bits_per_byte(math.log(65_536), 500, 1000) == pytest.approx(8)
    # Three targets of probability 1/2, 1/4, 1/8 spell two bytes: six bits.
    nll = -sum(math.log(p) for p in (1 / 2, 1 / 4, 1 / 8)) / 3
    assert bits_per_byte(nll, 3, 2) == pytest.approx(3)

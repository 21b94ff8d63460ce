"""What the doctor computes: offsets of clocks, values to sum, bandwidths; and how it tells what it found."""

import json
import random
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from launch.doctor import __main__ as door
from launch.doctor import collectives, machine, plan, storage
from launch.doctor.base import SHOWN_RANKS, Check, Finding, Level, Subject, examine, grouped, in_bytes, ranks_text
from pretrain.distributed.world import World
from pretrain.errors import DataError, NumericalError
from pretrain.strategy.ddp import DDPConfig
from pretrain.strategy.precision import FP32
from pretrain.train.run_dir.base import RunConfig
from pretrain.train.summary import ModelSize


def subject(hosts=("a", "a", "b"), device="cpu", cfg=None) -> Subject:
    """The first of some ranks, with nobody else there."""
    world = World(rank=0, size=len(hosts), device=torch.device("cpu"))
    return Subject("pretrain", cfg, world, list(hosts), torch.device(device))


@given(st.floats(-4000, 4000), st.randoms(use_true_random=False))
def test_the_offset_of_a_clock_lies_within_its_uncertainty(offset: float, chance: random.Random):
    own, first, widths, now = [], [], [], 1.7e9
    for _ in range(5):
        came = [now + chance.uniform(0, 0.5) for _ in range(2)]
        left = [max(came) + chance.uniform(0, 0.1) for _ in range(2)]  # nobody leaves before all have come
        own.append([came[0] + offset, left[0] + offset])
        first.append([came[1], left[1]])
        widths.append((left[0] - came[1] + left[1] - came[0]) / 2)
        now = max(left)
    found, uncertain = machine.clock_offset(own, first)
    assert abs(found - offset) <= uncertain + 1e-5 and uncertain <= min(widths) + 1e-5


@pytest.mark.parametrize(
    ("ahead", "level"), [(0.0, "ok"), (-0.9, "ok"), (1.2, "warning"), (-61, "FAILED"), (90, "FAILED")]
)
def test_clocks_apart_are_told_by_how_far(ahead, level):
    stays = [[[0.0, 0.01]], [[5.0, 5.01]], [[ahead, ahead + 0.01]]]  # the second rank is on the first one's host
    [(found, text, *_)] = machine._judge_clocks(subject(), stays)
    assert found == level
    if level != "ok":
        assert f"b is {ahead:+.3f} s from a (+- 0.010 s)" in text


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ranks", [2, 3, 64, 1000])
def test_known_values_sum_exactly_in_any_order(dtype, ranks):
    values = [known_values(dtype, rank, ranks) for rank in range(ranks)]
    order = random.Random(ranks).sample(values, ranks)
    total = torch.zeros_like(order[0][0])
    for own, _ in order:
        total += own
    assert all(torch.equal(total, expected) for _, expected in values)
    assert (total > 0).all() and not torch.equal(total - values[1][0], total), "a rank that is left out is seen"


def known_values(dtype, rank, ranks):
    return collectives.known_values(1021, dtype, rank, ranks)


@pytest.mark.parametrize("damaged", [None, torch.float32])
def test_a_wrong_sum_is_refused_with_an_element_of_it(monkeypatch, damaged):
    def sum_over_ranks(tensor, subject):
        values = [collectives.known_values(len(tensor), tensor.dtype, rank, subject.world.size)[0] for rank in range(3)]
        tensor.copy_(torch.stack(values).sum(dim=0))
        if tensor.dtype is damaged and len(tensor) == 1021:
            tensor[3] -= 1

    monkeypatch.setattr(collectives, "_all_reduce", sum_over_ranks)
    if damaged is None:
        exact = "sums of 1, 1,021, 1,000,003 elements over all ranks are exact: int64, float32"
        assert collectives._sums(subject()) == exact
        return
    wrong = r"^1 of 1,021 float32 are wrong: element 3 is 23.0, expected 24.0; exclude the host"
    with pytest.raises(NumericalError, match=wrong):
        collectives._sums(subject())


def test_bandwidths_are_those_of_nccl_tests():
    algorithm, bus = collectives.bandwidths(10**9, 0.5, 4)
    assert (algorithm, bus) == (2e9, 3e9)
    assert collectives.bandwidths(10**9, 0.5, 2) == (2e9, 2e9)
    rows = [[[2**28, seconds]] for seconds in (0.01, 2.0, 0.01)]
    [(level, text, *_)] = collectives._judge_times(subject(device="cuda"), rows)
    assert level is Level.warning and "in 2000.00 ms (0.13 GB/s algorithm, 0.18 bus)" in text


def gpu(local, name="NVIDIA H100, compute capability 9.0", identity=None):
    return {"gpus": 2, "local": local, "name": name, "id": identity or f"GPU-{local}"}


@pytest.mark.parametrize(
    ("answers", "level", "text"),
    [
        ([gpu(0), gpu(1), gpu(0)], "ok", "NVIDIA H100, compute capability 9.0 on all ranks"),
        ([gpu(0), gpu(0), gpu(0)], "FAILED", "ranks 0, 1 (a) share one device"),
        ([gpu(0), gpu(1), gpu(0, "NVIDIA L4")], "warning", "on ranks 0, 1 (a); NVIDIA L4 on rank 2 (b); the slowest"),
        ([gpu(0), {"gpus": 1, "local": 1}, gpu(0)], "FAILED", "rank 1 (a) of 3 see no CUDA device of their own"),
    ],
)
def test_devices_are_each_ranks_own_and_alike(answers, level, text):
    [(found, judged, *_)] = machine._judge_devices(subject(), answers)
    assert found == level and text in judged


def test_threads_beyond_the_cores_are_told():
    answers = [{"gpus": 0, "cores": [0, 1], "threads": threads} for threads in (2, 2, 2)]
    [(level, text, *_)] = machine._judge_devices(subject(), answers)
    assert level is Level.warning
    assert "a: 2 ranks start 4 threads on 2 cores" in text and "OMP_NUM_THREADS=1" in text


def test_what_is_set_around_a_process_is_shown_with_its_reason(monkeypatch):
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "TORCH_FR_BUFFER_SIZE"):
        monkeypatch.setenv(name, "")  # so that it is as before afterwards
        monkeypatch.delenv(name)
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    monkeypatch.setattr(machine, "pci_of", lambda device: (9, 9, 9))
    on_gpu = subject(device="cuda")
    found = machine._judge_surroundings(on_gpu, [json.loads(json.dumps(machine._surroundings(on_gpu)))])
    told = {finding.text.partition("=")[0]: finding for finding in found}
    assert "=expandable_segments:True: segments that grow" in told["PYTORCH_ALLOC_CONF"].text
    assert told["CUDA_DEVICE_MAX_CONNECTIONS"].level is Level.warning
    assert "=1 (set by you)" in told["CUDA_DEVICE_MAX_CONNECTIONS"].text
    assert {"TORCH_FR_BUFFER_SIZE", "OMP_NUM_THREADS", "cores"} < told.keys()


def test_a_check_that_breaks_is_a_finding():
    alone = Subject("pretrain", None, World.alone(), ["a"], torch.device("cpu"))

    def breaks(subject):
        raise KeyError("nothing there")

    def refuses(subject):
        raise DataError("corpus: damaged")

    [broken] = examine(Check("one", breaks, lambda subject, answers: []), alone)
    assert broken == Finding(Level.failed, "KeyError: 'nothing there' (on the only rank)", 2, "one")
    [unjudged] = examine(Check("one", lambda subject: 1, lambda subject, answers: answers[5]), alone)
    assert unjudged.level is Level.failed and "IndexError" in unjudged.text
    [refused] = examine(Check("two", refuses, lambda subject, answers: []), alone)
    assert refused == Finding(Level.failed, "corpus: damaged (on the only rank)", DataError.exit_code, "two")
    [fine] = examine(Check("three", lambda subject: "as it should be"), alone)
    assert fine == Finding(Level.ok, "as it should be", name="three")
    assert not examine(Check("four", lambda subject: None), alone)


def test_speed_is_measured_and_leaves_nothing(tmp_path):
    there = SimpleNamespace(run=RunConfig(root=str(tmp_path)))
    rates = storage._speed(subject(cfg=there))
    assert rates and all(1e3 < rate < 1e12 for rate in rates) and not list(tmp_path.iterdir())
    nowhere = SimpleNamespace(run=RunConfig(root=str(tmp_path / "nowhere")))
    assert storage._speed(subject(cfg=nowhere)) is None


def test_ranks_that_do_not_come_are_told(monkeypatch):
    from datetime import timedelta

    from ranks import free_port

    monkeypatch.setattr(door, "PATIENCE", timedelta(seconds=1))
    place = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    trouble = door.join()
    assert trouble and f"the 2 ranks do not find each other at 127.0.0.1:{place['MASTER_PORT']}" in trouble


def test_words():
    assert [ranks_text(ranks) for ranks in ([5], [0, 3], range(2048 + SHOWN_RANKS))] == [
        "rank 5",
        "ranks 0, 3",
        f"ranks {', '.join(map(str, range(SHOWN_RANKS)))} and 2,048 more",
    ]
    assert grouped([{"a": 1}, 2, {"a": 1}]) == [({"a": 1}, [0, 2]), (2, [1])]
    assert [in_bytes(size) for size in (5, 2**10, 3 * 2**29)] == ["5 bytes", "1.0 KiB", "1.5 GiB"]
    first, *folded = door.line(Finding(Level.failed, "word " * 40, name="batch")).splitlines()
    assert first.startswith("FAILED   batch          word")
    assert folded and all(line.startswith(" " * 24 + "word") for line in folded)


@pytest.mark.parametrize(("least", "level"), [(10**9, "FAILED"), (18 * 10**9, "warning"), (10**11, "ok")])
def test_memory_is_judged_by_the_rank_that_has_least(monkeypatch, least, level):
    monkeypatch.setattr(plan, "size_of", lambda subject: ModelSize(10**9, 10**9, 1.0))  # 16 GB of fp32 and AdamW
    cfg = SimpleNamespace(strategy=DDPConfig(), precision=FP32())
    [found] = plan._judge_memory(subject(cfg=cfg), [10**12, least, 10**12])
    assert found.level == level and in_bytes(least) in found.text

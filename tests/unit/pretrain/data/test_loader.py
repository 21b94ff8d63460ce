"""Batches: the same sequences however a step is divided, ahead of time, without a thread left behind."""

import gc
import itertools
import random
import threading
import time
from collections import Counter

import numpy as np
import pytest
import torch
from corpora import write_corpus
from waiting import until

from pretrain.data.batch import IGNORED, Batch, Inputs, Slots
from pretrain.data.course import Course, micro_batches_per_step
from pretrain.data.loader import (
    DataConfig,
    StepLoader,
    evaluation_batches,
)
from pretrain.data.packing import Packing
from pretrain.data.sources.base import PreparedSource
from pretrain.data.stream import HeldOut, TrainStream
from pretrain.distributed.world import World
from pretrain.errors import DataError
from pretrain.models.base import ModelKind
from pretrain.objectives.causal_lm import CausalLMConfig
from pretrain.objectives.denoising import DenoisingConfig
from pretrain.train.evaluation.evaluator import held_out_evaluator

Sequence = tuple[tuple[int, int], ...]  # (token, target) pairs


def causal(slots: Slots) -> Inputs:
    return Inputs(slots.tokens, slots.following, slots.offsets)


@pytest.fixture(params=[*((packing, 0) for packing in Packing), (Packing.windows, 5)])
def data(request, tmp_path) -> tuple[TrainStream, HeldOut]:
    """The streams of a mixture of two small corpora."""
    draw = random.Random(0)
    corpora = {
        name: write_corpus(
            tmp_path / name,
            rows := [[7, *(draw.randrange(100, 900) for _ in range(draw.randrange(1, 40)))] for _ in range(60)],
            rows[:13],
            prefix=[7],
            per_batch=11,
        )
        for name in ("one", "two")
    }
    sources = {name: PreparedSource(path=str(path), weight=2.0) for name, path in corpora.items()}
    packing, stride = request.param
    cfg = DataConfig(seq_len=16, packing=packing, stride=stride, sources=sources)
    return cfg.train_stream(corpora, seed=3), cfg.held_out(corpora)


def loader(stream: TrainStream, **changes: object) -> StepLoader:
    options = {
        "course": Course.constant(8),
        "micro_batch_size": 8,
        "rank": 0,
        "world_size": 1,
        "start_step": 0,
        "num_steps": 5,
    }
    return StepLoader(stream, causal, **{"pin": False, **options, **changes})


def sequences(batch: Batch) -> list[Sequence]:
    pairs = list(zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True))
    return [tuple(pairs[a:b]) for a, b in itertools.pairwise(batch.offsets.tolist())]


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    gc.collect()
    until(lambda: not loader_threads())


def test_a_batch_says_what_it_holds(data):
    stream, _ = data
    slots = stream.slots(np.arange(9))
    batch = Batch.of(causal(slots))
    lengths = np.diff(slots.offsets).tolist()
    assert batch.positions.tolist() == [place for length in lengths for place in range(length)]
    assert batch.lengths == lengths
    assert batch.max_len == max(lengths) <= 16
    assert batch.num_targets == int((batch.targets != IGNORED).sum())
    assert batch.tokens.dtype == batch.positions.dtype == batch.targets.dtype == torch.int64
    assert batch.offsets.dtype == torch.int32
    assert (batch.offsets[0], batch.offsets[-1]) == (0, len(batch.tokens))
    assert batch.segments is None


def test_the_longest_sequence_may_stand_anywhere():
    tokens, nothing = np.arange(8), np.full(8, IGNORED)
    for offsets in ([0, 2, 7, 8], [0, 5, 8], [0, 1, 3, 8]):
        slots = Slots(tokens, nothing, np.array(offsets, dtype=np.int32), np.array([0, 8]), np.zeros((1, 3), int))
        assert Batch.of(causal(slots)).max_len == 5


def test_targets_are_what_the_objective_makes_of_slots(data):
    stream, _ = data

    def every_third(slots: Slots) -> Inputs:
        targets = np.where(np.arange(len(slots.tokens)) % 3, IGNORED, slots.tokens)
        segments, labels = np.arange(len(targets)), np.arange(len(slots.slots) - 1)
        return Inputs(np.zeros_like(slots.tokens), targets, slots.slots.astype(np.int32), segments, labels)

    slots = stream.slots(np.arange(4))
    batch = Batch.of(every_third(slots))
    assert batch.num_targets == -(-len(batch.tokens) // 3)
    assert batch.tokens.sum() == 0
    assert batch.offsets.tolist() == slots.slots.tolist() and batch.lengths == np.diff(slots.slots).tolist()
    assert batch.positions[batch.offsets[:-1].long()].tolist() == [0] * 4
    assert batch.segments.tolist() == list(range(len(batch.tokens))) and batch.labels.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(("world_size", "micro_batch_size"), [(1, 4), (1, 1), (2, 4), (2, 2), (4, 1), (8, 1)])
def test_a_step_is_the_same_however_it_is_divided(data, world_size, micro_batch_size):
    stream, _ = data
    steps = list(loader(stream))
    shared = {"world_size": world_size, "micro_batch_size": micro_batch_size}
    per_rank = [list(loader(stream, rank=rank, **shared)) for rank in range(world_size)]
    for step, [whole] in enumerate(steps):
        micros = [batch for rank in per_rank for batch in rank[step]]
        assert len(micros) == 8 // micro_batch_size
        assert list(itertools.chain(*map(sequences, micros))) == sequences(whole)
        assert sum(batch.num_targets for batch in micros) == whole.num_targets


def test_steps_are_the_sequence_numbers_in_turn(data):
    stream, _ = data
    for step, [batch] in enumerate(loader(stream)):
        expected = Batch.of(causal(stream.slots(np.arange(step * 8, step * 8 + 8))))
        assert sequences(batch) == sequences(expected)


@pytest.mark.parametrize("start_step", [1, 4, 130])
def test_a_resumed_run_goes_on_as_if_never_interrupted(data, start_step):
    stream, _ = data
    whole = itertools.islice(loader(stream, num_steps=135), start_step, None)  # more than are located at a time
    resumed = loader(stream, start_step=start_step, num_steps=135)
    for [expected], [batch] in zip(whole, resumed, strict=True):
        assert sequences(batch) == sequences(expected)


def test_a_finished_run_has_no_steps(data):
    stream, _ = data
    done = loader(stream, start_step=5, num_steps=5)
    assert list(done) == []
    assert list(done) == []  # and is not stuck when asked again


def test_no_more_than_depth_steps_are_built_ahead(data):
    stream, _ = data
    built = []

    def counted(slots: Slots) -> tuple[np.ndarray, np.ndarray]:
        built.append(len(slots.tokens))
        return causal(slots)

    options = {
        "course": Course.constant(2),
        "micro_batch_size": 2,
        "rank": 0,
        "world_size": 1,
        "start_step": 0,
        "num_steps": 50,
    }
    with StepLoader(stream, counted, **options, pin=False, depth=3) as steps:
        for taken in range(1, 6):
            next(steps)
            deadline = time.monotonic() + 20
            while len(built) < taken + 3 and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(0.01)
            assert len(built) == taken + 3


def test_an_error_comes_at_the_step_where_it_belongs(data):
    stream, _ = data
    calls = itertools.count()

    def breaks(slots: Slots) -> tuple[np.ndarray, np.ndarray]:
        if next(calls) == 3 * 2:
            raise DataError("page 17 is damaged")
        return causal(slots)

    options = {
        "course": Course.constant(4),
        "micro_batch_size": 2,
        "rank": 0,
        "world_size": 1,
        "start_step": 0,
        "num_steps": 9,
    }
    with StepLoader(stream, breaks, **options, pin=False) as steps:
        assert len([next(steps) for _ in range(3)]) == 3
        for _ in range(2):
            with pytest.raises(DataError, match="page 17 is damaged"):
                next(steps)


def test_stopping_early_leaves_nothing_behind(data):
    stream, _ = data
    steps = loader(stream, num_steps=10_000)
    next(steps)
    assert len(loader_threads()) == 1
    steps.close()
    assert loader_threads() == []
    steps.close()
    assert list(steps) == []  # closed: no more steps, no waiting


def test_a_loader_that_nobody_holds_ends_by_itself(data):
    stream, _ = data
    for _ in loader(stream, num_steps=10_000):
        break
    gc.collect()
    until(lambda: not loader_threads())


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("micro_batch_size", [1, 4, 7])
def test_evaluation_sees_every_target_once_on_any_number_of_ranks(data, world_size, micro_batch_size):
    _, held_out = data
    whole = sequences(Batch.of(causal(held_out.slots(np.arange(held_out.num_slots)))))
    shares = [
        list(
            evaluation_batches(
                held_out, causal, micro_batch_size=micro_batch_size, rank=rank, world_size=world_size, max_slots=0
            )
        )
        for rank in range(world_size)
    ]
    assert len({len(share) for share in shares}) == 1
    batches = [batch for share in shares for batch in share]
    assert sum(batch.num_targets for batch in batches) == held_out.num_targets
    seen = Counter(sequence for batch in batches if batch.num_targets for sequence in sequences(batch))
    assert seen == Counter(whole)
    for batch in batches:
        if not batch.num_targets:
            assert (batch.targets == IGNORED).all()
            assert batch.offsets.tolist() == [0, len(batch.tokens)] == [0, batch.max_len]


def test_evaluation_of_a_few_slots_takes_them_from_everywhere(data):
    _, held_out = data
    batches = list(evaluation_batches(held_out, causal, micro_batch_size=2, rank=0, world_size=1, max_slots=6))
    chosen = [number * held_out.num_slots // 6 for number in range(6)]
    expected = sequences(Batch.of(causal(held_out.slots(np.array(chosen)))))
    assert list(itertools.chain(*map(sequences, batches))) == expected
    more = {"micro_batch_size": 2, "rank": 0, "world_size": 1, "max_slots": 10**6}
    assert sum(batch.num_targets for batch in evaluation_batches(held_out, causal, **more)) == held_out.num_targets


def test_a_rank_without_slots_has_a_source_where_others_have_one(tmp_path):
    """The whole way of an encoder-decoder: the objective decides, and engines run the same modules on every rank."""
    path = write_corpus(tmp_path / "c", [[7, 8]], [[7, 8, 9, 10]])
    held_out = DataConfig(seq_len=16, sources={"only": PreparedSource(path=str(path))}).held_out({"only": path})
    for objective in (CausalLMConfig(), DenoisingConfig()):
        world = World(rank=1, size=2, device=torch.device("cpu"))
        rest = {"micro_batch_size": 1, "max_slots": 0, "world": world}
        [batch] = held_out_evaluator(torch.nn.Identity(), objective, held_out, causal, **rest).batches()
        assert batch.filler and (batch.source is not None) == (objective.kind is ModelKind.encoder_decoder)


def test_an_empty_held_out_split_has_no_batches(tmp_path):
    path = write_corpus(tmp_path / "c", [[1] * 50])
    cfg = DataConfig(seq_len=16, sources={"only": PreparedSource(path=str(path))})
    held_out = cfg.held_out({"only": path})
    assert (held_out.num_slots, held_out.num_targets, held_out.text_bytes) == (0, 0, 0)
    assert list(evaluation_batches(held_out, causal, micro_batch_size=2, rank=0, world_size=2)) == []


@pytest.mark.parametrize(("batch", "micro", "ranks", "count"), [(8, 2, 2, 2), (8, 8, 1, 1), (512, 8, 64, 1)])
def test_micro_batches_per_step(batch, micro, ranks, count):
    assert micro_batches_per_step(batch, micro, ranks) == count


@pytest.mark.parametrize(("batch", "nearest"), [(10, "8 and 16"), (23, "16 and 24"), (3, "8 and 16")])
def test_a_remainder_is_refused_with_the_nearest_sizes(batch, nearest):
    with pytest.raises(ValueError, match=rf"train\.batch_size={batch}: .*4 x 2 = 8; the nearest are {nearest}"):
        micro_batches_per_step(batch, 4, 2)


def test_the_order_of_sources_does_not_matter(tmp_path):
    corpora = {name: write_corpus(tmp_path / name, [[ord(name)] * 90], prefix=[ord(name)]) for name in "ab"}
    sources = {name: PreparedSource(path=str(path)) for name, path in corpora.items()}
    one = DataConfig(seq_len=16, sources=sources).train_stream(corpora, seed=1)
    other = DataConfig(seq_len=16, sources=dict(reversed(sources.items()))).train_stream(corpora, seed=1)
    assert one.fingerprint == other.fingerprint
    assert one.slots(np.arange(20)).tokens.tolist() == other.slots(np.arange(20)).tokens.tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seq_len": 1}, "data.seq_len=1: at least 2 tokens"),
        ({"sources": {}}, "data.sources={}: at least one source"),
        ({"packing": Packing.windows, "stride": -1}, "data.stride=-1: 0"),
        ({"packing": Packing.windows, "seq_len": 16, "stride": 16}, "data.stride=16: 0 .*below data.seq_len=16"),
        ({"packing": Packing.best_fit, "stride": 4}, "data.stride=4: only windows overlap"),
        (
            {"packing": Packing.windows, "isolate_documents": False},
            "data.isolate_documents=false: data.packing=windows",
        ),
    ],
)
def test_configurations_that_cannot_be_trained_on(changes, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**{"sources": {"a": PreparedSource(path="x")}, **changes})

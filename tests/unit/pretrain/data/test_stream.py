"""Streams: from sequence numbers to tokens, compared with a model that walks over documents token by token."""

import itertools
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pytest
from corpora import write_corpus

from pretrain.data.batch import IGNORED, Slots
from pretrain.data.order import Mixture, Permutation
from pretrain.data.packing import Packing
from pretrain.data.stream import HeldOut, PackedSource, TrainStream
from pretrain.errors import DataError

TEMPLATES = [([7], []), ([8], [9]), ([], [9]), ([], [])]
SEQ_LEN = 16
WEIGHTS = [0.6, 0.4]


@dataclass
class World:
    """Two corpora, what they were made of, and the sources opened on them."""

    rows: list[list[list[int]]]  # source -> documents
    template: tuple[list[int], list[int]]
    train: list[PackedSource]
    validation: list[PackedSource]

    def stream(self, isolate: bool = True, seed: int = 5) -> TrainStream:
        return TrainStream(self.train, WEIGHTS, seed=seed, isolate=isolate)


def make_world(tmp_path, template=TEMPLATES[0], packing=Packing.concat, lowest_id=100) -> World:
    prefix, suffix = template
    draw = random.Random(3)
    corpora, rows = [], []
    for number, longest in enumerate((30, 9)):
        texts = [
            [draw.randrange(lowest_id, 900) for _ in range(draw.randrange(1, longest))] for _ in range(40 + number)
        ]
        rows.append([[*prefix, *text, *suffix] for text in texts])
        corpora.append(
            write_corpus(
                tmp_path / f"corpus-{number}", rows[-1], rows[-1][:11], prefix=prefix, suffix=suffix, per_batch=7
            )
        )
    names = ("first", "second")
    opened = [
        [
            PackedSource.open(name, path, split, seq_len=SEQ_LEN, packing=packing, partial=split != "train")
            for name, path in zip(names, corpora, strict=True)
        ]
        for split in ("train", "validation")
    ]
    return World(rows, template, *opened)


def walk(rows: list[list[int]], template: tuple[list[int], list[int]]) -> list[tuple[int, int]]:
    """Return each token of the stream with the id that follows it, by the rule of the template."""
    prefix, suffix = template
    after = prefix[0] if prefix and not suffix else IGNORED
    return [pair for row in rows for pair in zip(row, [*row[1:], after], strict=True)]


def targets_in(pairs: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    return [pair for pair in pairs if pair[1] != IGNORED]


def sequences_of(slots: Slots) -> list[list[tuple[int, int]]]:
    pairs = list(zip(slots.tokens.tolist(), slots.following.tolist(), strict=True))
    return [pairs[a:b] for a, b in itertools.pairwise(slots.offsets.tolist())]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("packing", list(Packing))
@pytest.mark.parametrize("isolate", [True, False])
def test_slots_hold_the_chunks_that_order_and_packing_say(tmp_path, template, packing, isolate):
    world = make_world(tmp_path, template, packing)
    stream = world.stream(isolate)
    numbers = np.arange(180, 420)  # every source is in its third epoch or later at the end
    slots = stream.slots(numbers)

    sizes = [source.packer.num_slots for source in world.train]
    place = zip(*(column.tolist() for column in Mixture(WEIGHTS, sizes).locate(numbers)), strict=True)
    expected_sequences, expected_keys = [], []
    for source, epoch, index in place:
        shuffle = Permutation(sizes[source], seed=5, source=source, epoch=epoch)
        slot = int(shuffle(np.array([index]))[0])
        chunks = world.train[source].packer.chunks(np.array([slot]))
        pairs = walk(world.rows[source], template)
        parts: list[list[tuple[int, int]]] = []
        for start, length, _, opens, context in zip(*chunks[:5], strict=True):
            part = [(token, IGNORED if context else after) for token, after in pairs[start : start + length]]
            parts = [*parts, part] if opens else [*parts[:-1], parts[-1] + part]
        expected_sequences += parts if isolate else [list(itertools.chain(*parts))]
        expected_keys.append([source, epoch, slot])
    assert sequences_of(slots) == expected_sequences
    assert slots.keys.tolist() == expected_keys
    assert slots.slots[0] == 0
    assert set(slots.slots.tolist()) <= set(slots.offsets.tolist())
    assert len(slots.slots) == len(numbers) + 1
    assert max(key[1] for key in expected_keys) >= 2
    assert (slots.tokens.dtype, slots.following.dtype, slots.offsets.dtype) == (np.int64, np.int64, np.int32)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("packing", list(Packing))
def test_an_epoch_is_every_token_and_every_target_once(tmp_path, template, packing):
    world = make_world(tmp_path, template, packing)
    stream = TrainStream(world.train[:1], [1.0], seed=1, isolate=True)
    for epoch in range(2):
        numbers = np.arange(stream.num_slots["first"]) + epoch * stream.num_slots["first"]
        slots = stream.slots(numbers)
        pairs = walk(world.rows[0], template)
        if packing is Packing.concat:
            pairs = pairs[: len(pairs) // SEQ_LEN * SEQ_LEN]
        seen = list(itertools.chain(*sequences_of(slots)))
        if packing is Packing.windows:  # they repeat the template, without targets
            pairs, seen = targets_in(pairs), targets_in(seen)
        assert Counter(pairs) == Counter(seen)
        assert sorted(slots.keys[:, 2].tolist()) == list(range(len(numbers)))


def test_slots_do_not_depend_on_how_they_are_asked_for(tmp_path):
    stream = make_world(tmp_path).stream()
    together = stream.slots(np.arange(60))
    alone = [stream.slots(np.array([number])) for number in range(60)]
    assert together.tokens.tolist() == list(itertools.chain(*(slots.tokens.tolist() for slots in alone)))
    assert together.following.tolist() == list(itertools.chain(*(slots.following.tolist() for slots in alone)))
    again = make_world(tmp_path / "again").stream().slots(np.arange(60))
    assert again.tokens.tolist() == together.tokens.tolist()
    other = make_world(tmp_path / "other").stream(seed=6).slots(np.arange(60))
    assert other.tokens.tolist() != together.tokens.tolist()


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("packing", list(Packing))
def test_the_held_out_stream_counts_every_target_once(tmp_path, template, packing):
    world = make_world(tmp_path, template, packing)
    held_out = HeldOut(world.validation, isolate=True)
    slots = held_out.slots(np.arange(held_out.num_slots))
    pairs = [walk(rows[:11], template) for rows in world.rows]
    seen = list(itertools.chain(*sequences_of(slots)))
    assert Counter(targets_in(seen)) == Counter(targets_in(itertools.chain(*pairs)))
    if packing is Packing.concat:
        assert slots.tokens.tolist() == [token for token, _ in itertools.chain(*pairs)]
    assert held_out.num_targets == sum(following != IGNORED for _, following in itertools.chain(*pairs))
    assert held_out.num_targets == int((slots.following != IGNORED).sum())
    assert held_out.text_bytes == 4 * sum(map(len, pairs))  # as `corpora` writes it
    sources = [0] * world.validation[0].packer.num_slots + [1] * world.validation[1].packer.num_slots
    assert slots.keys[:, 0].tolist() == sources


def test_what_the_summary_shows(tmp_path):
    world = make_world(tmp_path)
    stream = world.stream()
    first, second = (sum(map(len, rows)) // SEQ_LEN for rows in world.rows)
    assert stream.num_slots == {"first": first, "second": second}
    assert stream.epochs(500) == pytest.approx({"first": 300 / first, "second": 200 / second})
    assert stream.manifest.vocab_size == 50257


@pytest.mark.parametrize("isolate", [True, False])
def test_attention_costs_by_the_sequences_that_tokens_lie_in(tmp_path, isolate):
    stream = make_world(tmp_path).stream(isolate)
    lengths = [len(sequence) for number in range(64) for sequence in sequences_of(stream.slots(np.array([number])))]
    mean = sum(length * share for length, share in stream.lengths)
    assert mean == pytest.approx(sum(length * length for length in lengths) / sum(lengths))
    assert mean == pytest.approx(SEQ_LEN) if not isolate else 1 < mean < 0.9 * SEQ_LEN


def test_the_fingerprint_is_what_a_resume_must_match(tmp_path):
    def fingerprint(folder, weights=(0.6, 0.4), isolate=True, lowest_id=100, **cut):
        world = make_world(tmp_path / folder, lowest_id=lowest_id)
        cut = {"seq_len": SEQ_LEN, "packing": Packing.concat} | cut
        sources = [
            PackedSource.open(source.name, tmp_path / folder / f"corpus-{number}", "train", **cut, partial=False)
            for number, source in enumerate(world.train)
        ]
        return TrainStream(sources, list(weights), seed=1, isolate=isolate).fingerprint

    before = fingerprint("a")
    changed = lambda now: [key for key in before | now if before.get(key) != now.get(key)]
    assert changed(fingerprint("b")) == []
    weights = ["data.sources.first.weight", "data.sources.second.weight"]
    assert changed(fingerprint("c", weights=(0.5, 0.5))) == weights
    corpora = ["the corpus of data.sources.first", "the corpus of data.sources.second"]
    assert changed(fingerprint("g", lowest_id=101)) == corpora
    assert changed(fingerprint("d", isolate=False)) == ["data.isolate_documents"]
    assert changed(fingerprint("e", seq_len=8)) == ["data.seq_len"]
    assert changed(fingerprint("f", packing=Packing.best_fit)) == ["data.packing"]
    before = fingerprint("h", packing=Packing.windows)
    assert changed(fingerprint("i", packing=Packing.windows, stride=3)) == ["data.stride"]


def test_a_source_without_one_slot_is_refused(tmp_path):
    path = write_corpus(tmp_path / "c", [[1] * 15])
    source = PackedSource.open("tiny", path, "train", seq_len=16, packing=Packing.concat, partial=False)
    with pytest.raises(DataError, match=r"data\.sources\.tiny: 15 training tokens.*data\.seq_len=16"):
        TrainStream([source], [1.0], seed=1, isolate=True)


@pytest.mark.parametrize("packing", [Packing.best_fit, Packing.windows])
def test_documents_that_leave_most_of_a_slot_unused_are_told_of(tmp_path, packing):
    for name, lengths in (("short", [3, 5, 4]), ("long", [4, 4, 5])):
        write_corpus(tmp_path / name, [[100] * length for length in lengths], prefix=[])
    sources = [
        PackedSource.open(name, tmp_path / name, "train", seq_len=17, packing=packing, partial=False)
        for name in ("short", "long")
    ]
    [advice] = TrainStream(sources, WEIGHTS, seed=1, isolate=True).advice(batch_size=2)
    assert advice.startswith("data.sources.short: its documents have 4 tokens on average, far below data.seq_len=17")
    assert ("isolate_documents=false" in advice) == (packing is Packing.best_fit)
    assert not list(TrainStream(sources, WEIGHTS, seed=1, isolate=False).advice(batch_size=2))
    [advice] = TrainStream(sources, WEIGHTS, seed=1, isolate=False).advice(batch_size=3)
    assert advice.startswith("train.batch_size=3: more than the 2 slots that the text has")

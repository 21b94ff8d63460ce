"""Packing: slots hold what they should, no token twice, few documents cut."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from corpora import write_corpus
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.corpus import Corpus
from pretrain.data.packing import Chunks, Concat, Packing, WholeDocuments, pack, place

Chunk = tuple[int, int, bool]  # start, length, whether its document ends with it

lengths_lists = st.lists(st.integers(0, 40), min_size=1, max_size=60)


def slow_concat(lengths: list[int], seq_len: int) -> list[list[Chunk]]:
    """Walk over the stream token by token."""
    ends = set(np.cumsum(lengths).tolist())
    slots = []
    for start in range(0, sum(lengths), seq_len):
        slot, first = [], start
        end = min(start + seq_len, sum(lengths))
        for position in range(start + 1, end + 1):
            if position in ends or position == end:
                slot.append((first, position - first, position in ends))
                first = position
        slots.append(slot)
    return slots


def slow_best_fit_rooms(lengths: list[int], seq_len: int) -> Counter[int]:
    """Place one document after another; return how many slots have how much room left at the end."""
    parts = [seq_len] * sum(length // seq_len for length in lengths)
    parts += [length % seq_len for length in lengths if length % seq_len]
    rooms: list[int] = []
    for part in sorted(parts, reverse=True):
        fitting = [room for room in rooms if room >= part]
        if fitting:
            rooms.remove(min(fitting))
        rooms.append((min(fitting) if fitting else seq_len) - part)
    return Counter(rooms)


def as_slots(chunks: Chunks) -> list[list[Chunk]]:
    rows = list(zip(chunks.starts.tolist(), chunks.lengths.tolist(), chunks.closed.tolist(), strict=True))
    ends = np.cumsum(chunks.counts)
    return [rows[end - count : end] for end, count in zip(ends, chunks.counts, strict=True)]


@given(lengths_lists, st.integers(1, 17), st.integers(1, 9))
@settings(max_examples=50)
def test_concat_cuts_the_stream_at_slots_and_documents(tmp_path_factory, lengths, seq_len, per_batch):
    rows = [[1] * length for length in lengths]
    directory = write_corpus(tmp_path_factory.mktemp("corpus") / "c", rows, per_shard=23, per_batch=per_batch)
    corpus = Corpus.open(directory, "train")
    expected = slow_concat(lengths, seq_len)
    packer = Concat(corpus, seq_len, partial=True)
    assert packer.num_slots == len(expected)
    assert as_slots(packer.chunks(np.arange(packer.num_slots))) == expected
    backwards = np.arange(packer.num_slots)[::-1]
    assert as_slots(packer.chunks(backwards)) == expected[::-1]
    assert Concat(corpus, seq_len, partial=False).num_slots == sum(lengths) // seq_len


@given(lengths_lists, st.integers(1, 17))
@settings(max_examples=100)
def test_best_fit_places_every_token_once_and_cuts_only_what_is_too_long(lengths, seq_len):
    packer = WholeDocuments(np.array(lengths), seq_len)
    slots = as_slots(packer.chunks(np.arange(packer.num_slots)))
    assert len(slots) == packer.num_slots
    assert all(0 < sum(length for _, length, _ in slot) <= seq_len for slot in slots)
    chunks = sorted(chunk for slot in slots for chunk in slot)
    expected, start = [], 0
    for length in lengths:
        cuts = [*range(start, start + length, seq_len), start + length]
        expected += [(a, b - a, b == start + length) for a, b in pairwise(cuts)]
        start += length
    assert chunks == expected


@given(st.lists(st.integers(1, 60), min_size=1, max_size=120), st.sampled_from([16, 23, 31]))
@settings(max_examples=100)
def test_best_fit_fills_slots_as_the_slow_method_does(lengths, seq_len):
    packer = WholeDocuments(np.array(lengths), seq_len)
    slots = as_slots(packer.chunks(np.arange(packer.num_slots)))
    rooms = Counter(seq_len - sum(length for _, length, _ in slot) for slot in slots)
    assert rooms == slow_best_fit_rooms(lengths, seq_len)


def test_best_fit_by_hand():
    """Slots of 10: 7 and 3, then 6 and 4, then the 12 in two, its remainder with the 5 and the smaller 2."""
    packer = WholeDocuments(np.array([6, 12, 7, 2, 4, 3, 5]), 10)
    slots = as_slots(packer.chunks(np.arange(packer.num_slots)))
    assert slots == [
        [(6, 10, False)],
        [(18, 7, True), (31, 3, True)],
        [(0, 6, True), (27, 4, True)],
        [(34, 5, True), (16, 2, True), (25, 2, True)],
    ]


def test_the_work_of_best_fit_does_not_grow_with_documents():
    draw = np.random.default_rng(0)
    few = np.bincount(draw.geometric(1 / 60, size=3_000).clip(max=256), minlength=257)
    many = few * 1000
    assert len(place(many, 256)) < 20 * len(place(few, 256))
    placed = sum(run.slots * run.each for run in place(many, 256))
    assert placed == 3_000_000


def test_best_fit_beats_concat_on_cut_documents(tmp_path):
    draw = np.random.default_rng(1)
    rows = [[1] * int(length) for length in draw.integers(1, 60, size=500)]
    corpus = Corpus.open(write_corpus(tmp_path / "c", rows), "train")
    cut = {}
    for packing in Packing:
        packer = pack(packing, corpus, 64, partial=True)
        cut[packing] = int((~packer.chunks(np.arange(packer.num_slots)).closed).sum())
        assert packer.num_slots <= 1.05 * corpus.num_tokens / 64 + 1
    assert cut[Packing.best_fit] == 0 < cut[Packing.concat]


@pytest.mark.parametrize("packing", list(Packing))
def test_an_empty_split_has_no_slots(tmp_path, packing):
    corpus = Corpus.open(write_corpus(tmp_path / "c", [[1]]), "validation")
    assert pack(packing, corpus, 8, partial=True).num_slots == 0

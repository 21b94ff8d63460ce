"""Corpora: what is read is what was written, and nothing damaged is read."""

import itertools
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from corpora import edit_json, write_corpus
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.corpus import Corpus, concatenated_ranges
from pretrain.data.manifest import PAGE_BYTES, Manifest
from pretrain.errors import DataError

documents = st.lists(st.lists(st.integers(1, 999), max_size=12), min_size=1, max_size=20)


def random_documents(count: int, longest: int, seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(1, 1000) for _ in range(draw.randrange(longest + 1))] for _ in range(count)]


@given(documents, st.integers(1, 7), st.integers(1, 5), st.sampled_from(["uint16", "uint32"]))
@settings(max_examples=60)
def test_every_range_is_what_was_written(tmp_path_factory, rows, per_shard, per_batch, dtype):
    directory = tmp_path_factory.mktemp("corpus") / "c"
    write_corpus(directory, rows, rows[:1], dtype=dtype, per_shard=per_shard, per_batch=per_batch)
    corpus = Corpus.open(directory, "train")
    stream = [token for row in rows for token in row]
    ends = list(itertools.accumulate(map(len, rows)))
    assert (corpus.num_tokens, corpus.text_bytes) == (len(stream), 4 * len(stream))
    assert corpus.num_documents == len(rows)
    ranges = [(a, b) for a in range(len(stream)) for b in range(a + 1, len(stream) + 1)]
    for start, end in ranges[:: max(1, len(ranges) // 40)]:
        assert corpus.read(start, end - start).tolist() == stream[start:end]
        found, counts = corpus.boundaries(np.array([start]), np.array([end]))
        assert sorted(set(found.tolist())) == sorted({at for at in ends if start < at <= end})
        assert counts.tolist() == [len(found)]
    assert corpus.document_lengths().tolist() == [len(row) for row in rows]


def test_many_ranges_at_once_land_where_they_are_wanted(tmp_path):
    rows = [[1, *row] for row in random_documents(300, 90)]
    corpus = Corpus.open(write_corpus(tmp_path / "c", rows, per_shard=70, per_batch=9), "train")
    stream = np.concatenate(rows)
    draw = np.random.default_rng(1)
    lengths = draw.integers(1, 400, size=50)
    starts = draw.integers(0, corpus.num_tokens - 400, size=50)
    at = np.cumsum(lengths + 3) - lengths  # three untouched places before each
    into = np.full(at[-1] + lengths[-1], -1)
    corpus.copy(starts, lengths, into, at)
    expected = np.full_like(into, -1)
    for start, length, place in zip(starts, lengths, at, strict=True):
        expected[place : place + length] = stream[start : start + length]
    assert (into == expected).all()
    found, counts = corpus.boundaries(starts, starts + lengths)
    ends = np.cumsum([len(row) for row in rows])
    alone = [ends[(ends > start) & (ends <= start + length)] for start, length in zip(starts, lengths, strict=True)]
    assert found.tolist() == np.concatenate(alone).tolist()
    assert counts.tolist() == [len(part) for part in alone]


def test_an_empty_split_is_empty(tmp_path):
    corpus = Corpus.open(write_corpus(tmp_path / "c", [[1, 2]]), "validation")
    assert (corpus.num_tokens, corpus.num_documents, len(corpus.document_lengths())) == (0, 0, 0)
    assert corpus.read(0, 0).tolist() == []


def test_concatenated_ranges():
    assert concatenated_ranges(np.array([5, 0, 7]), np.array([2, 0, 3])).tolist() == [5, 6, 7, 8, 9]
    assert concatenated_ranges(np.array([], dtype=int), np.array([], dtype=int)).tolist() == []


def test_nothing_on_the_way_to_the_tokens_imports_torch():
    modules = "corpus, order, packing"
    code = f"import sys; from pretrain.data import {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# What is damaged is refused, by name.


@pytest.fixture
def corpus_dir(tmp_path) -> Path:
    """A corpus of two shards of several batches, the last of which spans several pages."""
    rows = [[0, *row] for row in random_documents(40, 30)]
    rows.append([0, *range(1, 3 * PAGE_BYTES // 2)])
    return write_corpus(tmp_path / "c", rows, rows[:2], prefix=[0], per_shard=30, per_batch=8)


def read_all(directory: Path) -> tuple[list[int], list[int]]:
    corpus = Corpus.open(directory, "train")
    return corpus.read(0, corpus.num_tokens).tolist(), corpus.document_lengths().tolist()


def rewrite_manifest(directory: Path, edit) -> None:
    edit_json(directory / "manifest.json", edit)


def refused(directory: Path, *parts: object) -> None:
    with pytest.raises(DataError, match=".*".join(re.escape(str(part)) for part in parts)):
        read_all(directory)


def test_a_missing_corpus_or_split(corpus_dir, tmp_path):
    refused(tmp_path / "none", tmp_path / "none" / "manifest.json", "not there")
    with pytest.raises(DataError, match=r"manifest.json: no split 'test', only \['train', 'validation'\]"):
        Corpus.open(corpus_dir, "test")


@pytest.mark.parametrize("name", ["train-00000.arrow", "train-00001.crc"])
def test_a_missing_file(corpus_dir, name):
    (corpus_dir / name).unlink()
    refused(corpus_dir, corpus_dir / name, "not there")


@pytest.mark.parametrize("name", ["train-00001.arrow", "train-00000.crc"])
def test_a_truncated_file(corpus_dir, name):
    path = corpus_dir / name
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    refused(corpus_dir, path, f"bytes {size - 1}, expected {size}")


def test_a_header_that_was_altered(corpus_dir):
    path = corpus_dir / "train-00000.arrow"
    path.write_bytes(b"PARROW" + path.read_bytes()[6:])
    refused(corpus_dir, path, "begins with b'PARROW'")


def flip(path: Path, byte: int, bit: int = 0) -> None:
    raw = bytearray(path.read_bytes())
    raw[byte] ^= 1 << bit
    path.write_bytes(raw)


def test_a_flipped_bit_among_the_tokens(corpus_dir):
    path = corpus_dir / "train-00001.arrow"
    ids = np.arange(1, 3 * PAGE_BYTES // 2, dtype=np.uint16).tobytes()
    wanted = 20_000  # the token whose id has this value lies on the second page of its batch
    flip(path, path.read_bytes().index(ids) + 2 * (wanted - 1))
    batch = path.read_bytes().index(ids[:30_000]) - 2 * sum(len(row) + 1 for row in random_documents(40, 30)[38:]) - 2
    refused(corpus_dir, path, f"bytes {batch + 2 * PAGE_BYTES} to {batch + 3 * PAGE_BYTES}", "CRC-32", "expected")
    corpus = Corpus.open(corpus_dir, "train")
    assert corpus.read(0, 500).tolist() == [token for row in random_documents(40, 30) for token in [0, *row]][:500]


def test_a_flipped_bit_among_the_offsets(corpus_dir):
    path = corpus_dir / "train-00000.arrow"
    offsets = np.cumsum([0, *(len(row) + 1 for row in random_documents(40, 30)[:8])], dtype=np.int64)
    flip(path, path.read_bytes().index(offsets.tobytes()) + 8 * 3)
    refused(corpus_dir, path, "document offsets have CRC-32")


def test_no_flipped_bit_changes_what_is_read(tmp_path):
    """Whatever byte of a shard or of its checksums is hit: an error, or the same tokens and documents as before."""
    directory = write_corpus(tmp_path / "c", random_documents(6, 9), per_batch=3)
    before = read_all(directory)
    draw = random.Random(0)
    harmless = 0
    for name in ("train-00000.arrow", "train-00000.crc"):
        path = directory / name
        for byte in range(path.stat().st_size):
            bit = draw.randrange(8)
            flip(path, byte, bit)
            try:
                assert read_all(directory) == before, f"{name}: bit {bit} of byte {byte}"
                harmless += 1
            except DataError as error:
                assert "train-00000" in str(error)
            flip(path, byte, bit)
    assert harmless  # padding


def test_an_id_outside_the_vocabulary(tmp_path):
    directory = write_corpus(tmp_path / "c", [[1, 2], [3, 500, 4]], vocab_size=500)
    path = directory / "train-00000.arrow"
    position = path.read_bytes().index(np.array([1, 2, 3, 500, 4], dtype=np.uint16).tobytes()) + 2 * 3
    refused(directory, path, f"id 500 at byte {position}", "below the vocabulary size 500")


@pytest.mark.parametrize(("key", "counted"), [("documents", 30), ("tokens", 492)])
def test_counts_that_the_manifest_contradicts(corpus_dir, key, counted):
    def edit(raw):
        counted_there = raw["splits"]["train"]["shards"][0]
        assert counted_there[key] == counted
        counted_there[key] += 1

    rewrite_manifest(corpus_dir, edit)
    refused(corpus_dir, "train-00000.arrow", f"{key} {counted}, expected {counted + 1}")


def test_another_type_of_ids(corpus_dir):
    rewrite_manifest(corpus_dir, lambda raw: raw.update(dtype="uint32"))
    refused(corpus_dir, "columns tokens: large_list<uint16>, expected tokens: large_list<uint32>")


@pytest.mark.parametrize("dtype", ["uint8", "float32", 7])
def test_a_type_that_ids_cannot_have(corpus_dir, dtype):
    rewrite_manifest(corpus_dir, lambda raw: raw.update(dtype=dtype))
    refused(corpus_dir, "manifest.json", "dtype", dtype)


def replace_shard(directory: Path, table: pa.Table, **options: object) -> None:
    """Put another Arrow file in the place of the first shard, with the size that the manifest names."""
    path = directory / "train-00000.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema, **options) as writer:
        writer.write_table(table)
    rewrite_manifest(
        directory, lambda raw: raw["splits"]["train"]["shards"][0].update(size=path.stat().st_size, tokens=300)
    )


@pytest.mark.parametrize(
    ("column", "kind", "found"),
    [
        ("ids", pa.large_list(pa.uint16()), "ids: large_list<uint16>"),
        ("tokens", pa.list_(pa.uint16()), "tokens: list<item: uint16>"),
        ("tokens", pa.large_list(pa.int16()), "tokens: large_list<int16>"),
    ],
)
def test_other_columns(tmp_path, column, kind, found):
    directory = write_corpus(tmp_path / "c", [[1] * 300])
    replace_shard(directory, pa.table({column: pa.array([[1] * 300], type=kind)}))
    refused(directory, "train-00000.arrow", f"columns {found}, expected tokens: large_list<uint16>")


def test_nulls_and_compression(tmp_path):
    kind = pa.large_list(pa.uint16())
    directory = write_corpus(tmp_path / "c", [[1] * 300])
    replace_shard(directory, pa.table({"tokens": pa.array([[1] * 299 + [None]], type=kind)}))
    refused(directory, "train-00000.arrow", "holds nulls")
    replace_shard(
        directory,
        pa.table({"tokens": pa.array([[1] * 300], type=kind)}),
        options=pa.ipc.IpcWriteOptions(compression="zstd"),
    )
    refused(directory, "train-00000.arrow", "compressed")


def test_the_fingerprint_follows_the_shards(corpus_dir, tmp_path):
    copy = shutil.copytree(corpus_dir, tmp_path / "copy")
    assert Manifest.load(copy).fingerprint == Manifest.load(corpus_dir).fingerprint
    rewrite_manifest(copy, lambda raw: raw["splits"]["train"]["shards"][1].update(sha256="1" * 64))
    assert Manifest.load(copy).fingerprint != Manifest.load(corpus_dir).fingerprint

"""Compressed files: read by their content under any name, to their end, and refused by name where they are damaged."""

import bz2
import gzip
import io
import lzma

import pyarrow as pa
import pytest
from reading import read

from pretrain.data.sources.base import Cut, TextSource
from pretrain.data.sources.compression import SIGNATURE_BYTES, decompressed, is_compressed
from pretrain.data.sources.readers import file_format
from pretrain.data.sources.structured import JsonLinesSource
from pretrain.errors import DataError

SKIPPED = b"\x5a\x2a\x4d\x18\x03\0\0\0abc"  # a frame of zstd that holds no content, as seekable files begin with


def zstd(data: bytes) -> bytes:
    return pa.Codec("zstd").compress(data, asbytes=True)


PACK = {"gzip": gzip.compress, "xz": lzma.compress, "bzip2": bz2.compress, "zstd": zstd}
CONTENT = "".join(f"line {number} é\n\n" for number in range(5000)).encode()


def texts(path, cut=Cut.line, unit_bytes=1000) -> list[str]:
    found, counts = read(TextSource(paths=[str(path)], documents=cut), unit_bytes)
    assert not set(counts) - {"empty"}
    return found


@pytest.mark.parametrize("kind", PACK)
def test_compressed_files_hold_the_same_documents_under_any_name(tmp_path, kind):
    plain = tmp_path / "plain.txt.gz"  # a name that promises too much
    plain.write_bytes(CONTENT)
    for name in ("a.txt.gz", "a.zst", "part-00000", "A.GZ"):
        path = tmp_path / name
        path.write_bytes(PACK[kind](CONTENT))
        for cut in Cut:
            assert texts(path, cut) == texts(plain, cut) != []


JOINED = {
    "gzip, padded": lambda one, two: gzip.compress(one) + gzip.compress(two) + bytes(512),
    "xz, padded": lambda one, two: lzma.compress(one) + bytes(8) + lzma.compress(two) + bytes(70_000),
    "bzip2, padded": lambda one, two: bz2.compress(one) + bz2.compress(two) + bytes(70_000),
    "zstd, with a frame that is skipped": lambda one, two: SKIPPED + zstd(one) + SKIPPED + zstd(two) + SKIPPED,
    "zstd of a level with a long window": lambda one, two: pa.Codec("zstd", 22).compress(one + two, asbytes=True),
    "an empty stream first": lambda one, two: bz2.compress(b"") + bz2.compress(one + two),
}


@pytest.mark.parametrize("kind", JOINED)
def test_streams_one_after_another_are_read_to_the_end(tmp_path, kind):
    path = tmp_path / "joined"
    path.write_bytes(JOINED[kind](CONTENT[:30_001], CONTENT[30_001:]))
    assert texts(path, Cut.file) == [CONTENT.decode()]


@pytest.mark.parametrize("kind", PACK)
def test_reads_of_any_size_give_the_same_bytes(kind):
    packed = PACK[kind](CONTENT) + PACK[kind](b"") + PACK[kind](CONTENT)
    for size in (1, 7, 4096, 10**6):
        stream = decompressed(io.BytesIO(packed))
        start = stream.read(size)
        assert len(start) == min(size, 2 * len(CONTENT))  # the block that shows what a file is, is full
        assert start + stream.read() == CONTENT * 2


@pytest.mark.parametrize("kind", PACK)
def test_an_empty_file_that_was_compressed_is_empty_and_so_is_an_empty_one_with_such_a_name(tmp_path, kind):
    (tmp_path / "a.gz").write_bytes(PACK[kind](b""))
    (tmp_path / "b.gz").write_bytes(b"")
    assert read(TextSource(paths=[f"{tmp_path}/*.gz"])) == ([], {"empty": 1, "empty_file": 1})


@pytest.mark.parametrize("kind", PACK)
@pytest.mark.parametrize("joined", [False, True])
def test_a_damaged_file_is_refused_by_name(tmp_path, kind, joined):
    path, packed = tmp_path / "torn", PACK[kind](CONTENT)
    start = packed * joined
    damages = [packed[:-cut] for cut in (1, 20, len(packed) // 2)] + [packed + b"garbage", packed + packed[:20]]
    damages.append(packed[:30] + bytes([packed[30] ^ 0xFF]) + packed[31:])
    for damage in damages:
        path.write_bytes(start + damage)
        with pytest.raises(DataError, match=r"torn: cannot be read \(.+\); restore the file"):
            texts(path)


def test_a_window_that_is_too_long_is_refused_with_what_to_do(tmp_path):
    window, block = 21 << 3, (len(CONTENT[:1000]) << 3) | 1  # 2**31 bytes; the last block, of raw bytes
    header = b"\x28\xb5\x2f\xfd\0" + bytes([window]) + block.to_bytes(3, "little")
    path = tmp_path / "long.zst"
    path.write_bytes(header + CONTENT[:1000])
    with pytest.raises(DataError, match=r"long\.zst: cannot be read .*; decompress it, .* zstd -d --long=31"):
        texts(path)
    path.write_bytes(header[:5] + bytes([17 << 3]) + header[6:] + CONTENT[:1000])  # 2**27, as plain --long writes
    assert texts(path, Cut.file) == [CONTENT[:1000].decode()]


def test_files_longer_than_a_unit_are_divided_by_their_content(tmp_path):
    packed, plain = tmp_path / "packed.jsonl", tmp_path / "plain.jsonl.gz"
    packed.write_bytes(gzip.compress(CONTENT, 0))
    plain.write_bytes(CONTENT)
    source = JsonLinesSource(paths=[str(packed), str(plain)])
    inputs = source.inputs()
    parts = {part for unit in source.units(inputs, 50_000) for part in unit if part.file == str(packed)}
    assert parts == {(str(packed), 0, None)}
    ranges = [part for unit in source.units(inputs, 50_000) for part in unit if part.file == str(plain)]
    assert [part.start for part in ranges] == [0, 50_000] and ranges[-1].stop == len(CONTENT)


def test_text_does_not_look_compressed():
    assert not [start for start in (b"", b"text", b"BZh91 is a word", b"\x1f\x8b", b"(\xb5") if is_compressed(start)]
    assert all(is_compressed(pack(b"")[:SIGNATURE_BYTES]) for pack in PACK.values())


def test_a_format_is_the_suffix_that_is_not_of_compression():
    names = {"a.csv.gz": ".csv", "A.JSONL.ZST": ".jsonl", "b.parquet": ".parquet", "c.gz": "", "d": "", "e.f/g.xz": ""}
    assert {name: file_format(name) for name in names} == names

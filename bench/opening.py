"""Opening a corpus of a billion tokens and jumping to the last step of its epoch: seconds and memory.

Holds the measurement only. The corpus is a sparse file (all ids are 0), so it takes no disk; what is read is checked
all the same. The measured process has no torch, whose own memory would hide the answer.

    python -m bench.opening
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa

from bench.rounds import ROOT, machine
from pretrain.data.corpus import Corpus
from pretrain.data.manifest import PAGE_BYTES, Manifest, Shard, Split
from pretrain.data.order import Permutation
from pretrain.data.packing import Packing, pack

DOCUMENT = 500  # tokens
BATCH = 2_000_000  # tokens in a record batch
SHARD = 100_000_000  # tokens in a shard
SEQ_LEN = 1024
STEP = 512  # slots


class SparseFile(io.RawIOBase):
    """A file that leaves holes where zeros are written."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = path.open("wb")

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def write(self, data: object) -> int:
        view = memoryview(data).cast("B")
        if len(view) > PAGE_BYTES and not np.frombuffer(view, dtype=np.uint8).any():
            self._file.seek(len(view), io.SEEK_CUR)
        else:
            self._file.write(view)
        return len(view)

    def close(self) -> None:
        self._file.truncate()
        self._file.close()
        super().close()


def write_corpus(directory: Path, tokens: int) -> None:
    """Write a corpus of this many zeros, in documents of DOCUMENT tokens."""
    values = np.zeros(BATCH, dtype=np.uint16)
    offsets = np.arange(0, BATCH + 1, DOCUMENT, dtype=np.int64)
    batch = pa.record_batch([pa.LargeListArray.from_arrays(offsets, values)], names=["tokens"])
    pages = [zlib.crc32(values[at : at + PAGE_BYTES // 2].data) for at in range(0, BATCH, PAGE_BYTES // 2)]
    shards = []
    for number in range(tokens // SHARD):
        path = directory / f"train-{number:05}.arrow"
        with SparseFile(path) as sink, pa.ipc.new_file(pa.PythonFile(sink, mode="w"), batch.schema) as writer:
            for _ in range(SHARD // BATCH):
                writer.write_batch(batch)
        crcs = np.array([*pages, zlib.crc32(offsets.data)] * (SHARD // BATCH), dtype="<u4")
        path.with_suffix(".crc").write_bytes(crcs.tobytes())
        hashes = {"sha256": "0" * 64, "crc_sha256": hashlib.sha256(crcs).hexdigest()}
        counts = {"documents": SHARD // DOCUMENT, "tokens": SHARD, "text_bytes": 4 * SHARD}
        shards.append(Shard(file=path.name, **counts, size=path.stat().st_size, **hashes))
    Manifest(
        source={},
        dtype="uint16",
        vocab_size=50257,
        tokenizer_sha256="0" * 64,
        prefix=[0],
        suffix=[],
        splits={"train": Split(shards=shards)},
        skipped={},
        versions={},
    ).save(directory)


def memory_mb(field: str) -> float:
    """Return VmRSS (now) or VmHWM (at its highest) of this process, mapped files included, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError(f"/proc/self/status has no {field}")


def measure(directory: Path, packing: Packing) -> dict[str, float | str]:
    """Open the corpus and read the last step of its first epoch, in this process."""
    assert "torch" not in sys.modules
    before = memory_mb("VmRSS")
    start = time.perf_counter()
    corpus = Corpus.open(directory, "train")
    packer = pack(packing, corpus, SEQ_LEN, partial=False)
    opened = time.perf_counter()
    shuffle = Permutation(packer.num_slots, seed=1, source=0, epoch=0)
    chunks = packer.chunks(shuffle(np.arange(packer.num_slots - STEP, packer.num_slots)))
    tokens = np.empty(chunks.lengths.sum(), dtype=np.int64)
    corpus.copy(chunks.starts, chunks.lengths, tokens, np.cumsum(chunks.lengths) - chunks.lengths)
    done = time.perf_counter()
    return {
        "packing": packing,
        "tokens": corpus.num_tokens,
        "open_s": opened - start,
        "last_step_s": done - opened,
        "added_mb": memory_mb("VmHWM") - before,
    }


def main() -> None:
    """Make the corpus, measure each packing in a fresh process and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1_000_000_000, help=f"a multiple of {SHARD:,}")
    parser.add_argument("--measure", nargs=2, metavar=("CORPUS", "PACKING"), help="what the fresh process is told")
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(Path(args.measure[0]), Packing(args.measure[1]))))
        return
    with tempfile.TemporaryDirectory() as directory:
        write_corpus(Path(directory), args.tokens)
        print(machine("numpy", "pyarrow"))
        print(f"| packing | tokens | open, s | last step of {STEP} slots, s | memory added at the highest, MB |")
        print("|---|---|---|---|---|")
        for packing in Packing:
            command = [sys.executable, "-m", "bench.opening", "--measure", directory, packing]
            row = json.loads(subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True).stdout)
            print(
                f"| {packing} | {row['tokens']:,} | {row['open_s']:.3f} | {row['last_step_s']:.3f} "
                f"| {row['added_mb']:.0f} |"
            )


if __name__ == "__main__":
    main()

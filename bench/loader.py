"""Loader speed in tokens a second, one process, beside what peers do for the same batch.

Holds the measurement only. Peers draw windows at random, with no documents, no checks and no exact resume: nanoGPT's
way of cutting a flat file, and rows of a data set through the default collator of transformers.

    python -m bench.loader
    python -m bench.loader --rounds 5 --tokens 100_000_000

Needs transformers (`pip install transformers`). Opening a huge corpus is measured by `bench.opening`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import torch

from bench.rounds import machine
from pretrain.data.batch import Inputs, Slots
from pretrain.data.course import Course
from pretrain.data.loader import DataConfig, StepLoader
from pretrain.data.manifest import Manifest, Split
from pretrain.data.packing import Packing
from pretrain.data.prepare.shards import ShardWriter
from pretrain.data.sources.base import PreparedSource

BATCH_TOKENS = 8192  # in a micro-batch, whatever the length of a sequence
DOCUMENT = 500  # tokens in the average document
VOCABULARY = 16_384
PACKINGS = [f"headwater {packing}" for packing in Packing]
CONTESTANTS = (*PACKINGS, "nanoGPT get_batch", "transformers collator")


def write_corpus(directory: Path, tokens: int) -> Path:
    """Write random documents as a corpus and, for the peers, the same ids as one flat file; return that file."""
    draw = np.random.default_rng(0)
    writer = ShardWriter(directory, "train-00000", dtype="uint16", vocab_size=VOCABULARY, batch_bytes=4 * 2**20)
    flat = directory / "train.bin"
    written = 0
    with flat.open("wb") as file:
        while written < tokens:
            ids = draw.integers(1, VOCABULARY, size=1 + draw.geometric(1 / DOCUMENT), dtype=np.uint16)
            ids[0] = 0
            writer.add(ids, 4 * len(ids))
            file.write(ids.tobytes())
            written += len(ids)
    shard = writer.close()
    assert shard is not None
    Manifest(
        source={},
        dtype="uint16",
        vocab_size=VOCABULARY,
        tokenizer_sha256="0" * 64,
        prefix=[0],
        suffix=[],
        splits={"train": Split(shards=[shard]), "validation": Split()},
        skipped={},
        versions={},
    ).save(directory)
    return flat


def speed(tokens_of_batches: Iterator[int], batches: int) -> float:
    """Return millions of tokens a second over so many batches, after one that does not count."""
    next(tokens_of_batches)
    start = time.perf_counter()
    tokens = sum(next(tokens_of_batches) for _ in range(batches))
    return tokens / (time.perf_counter() - start) / 1e6


def headwater(directory: Path, packing: Packing, seq_len: int, batches: int, runs: Iterator[int]) -> float:
    """Run the loader over steps that it has not read before, as long as the corpus has them."""

    def causal(slots: Slots) -> Inputs:
        return Inputs(slots.tokens, slots.following, slots.offsets)

    cfg = DataConfig(seq_len=seq_len, packing=packing, sources={"bench": PreparedSource(path=str(directory))})
    stream = cfg.train_stream({"bench": directory}, seed=1)
    size = BATCH_TOKENS // seq_len
    sizes = {"course": Course.constant(size), "micro_batch_size": size, "rank": 0, "world_size": 1}
    start = next(runs) * (batches + 1)
    with StepLoader(stream, causal, **sizes, start_step=start, num_steps=start + batches + 1, pin=False) as steps:
        return speed((len(batch.tokens) for [batch] in steps), batches)


def nanogpt(flat: Path, seq_len: int, batches: int) -> float:
    """Cut random windows from a flat file, opened anew for each batch, as nanoGPT's training script does."""

    def get_batch() -> int:
        data = np.memmap(flat, dtype=np.uint16, mode="r")
        places = torch.randint(len(data) - seq_len, (BATCH_TOKENS // seq_len,))
        inputs = torch.stack([torch.from_numpy(data[i : i + seq_len].astype(np.int64)) for i in places])
        torch.stack([torch.from_numpy(data[i + 1 : i + 1 + seq_len].astype(np.int64)) for i in places])
        return inputs.numel()

    return speed((get_batch() for _ in count()), batches)


def collator(flat: Path, seq_len: int, batches: int) -> float:
    """Draw shuffled rows as transformers' language modelling examples store them, through its default collator."""
    from datasets import Dataset
    from torch.utils.data import DataLoader
    from transformers import default_data_collator

    size = BATCH_TOKENS // seq_len
    ids = np.fromfile(flat, dtype=np.uint16, count=(batches + 2) * BATCH_TOKENS).astype(np.int32).reshape(-1, seq_len)
    rows = Dataset.from_dict({"input_ids": ids, "attention_mask": np.ones_like(ids, dtype=np.int8), "labels": ids})
    loaded = DataLoader(rows, batch_size=size, shuffle=True, collate_fn=default_data_collator)
    return speed((batch["input_ids"].numel() for batch in loaded), batches)


def main() -> None:
    """Measure all contestants round by round and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=40_000_000, help="size of the corpus")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=500, help=f"of {BATCH_TOKENS} tokens, in each round")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(machine("torch", "numpy", "transformers", "datasets"))
    print(f"| tokens in a sequence | {' | '.join(CONTESTANTS)} |\n|{'---|' * (len(CONTESTANTS) + 1)}")
    with tempfile.TemporaryDirectory() as directory:
        flat = write_corpus(Path(directory), args.tokens)
        for seq_len in (256, 1024):
            contestants: list[Callable[[], float]] = [
                *(partial(headwater, Path(directory), packing, seq_len, args.batches, count()) for packing in Packing),
                partial(nanogpt, flat, seq_len, args.batches),
                partial(collator, flat, seq_len, max(args.batches // 10, 1)),
            ]
            rounds = [[measure() for measure in contestants] for _ in range(args.rounds)]
            medians = (statistics.median(figures) for figures in zip(*rounds, strict=True))
            print(f"| {seq_len} | {' | '.join(f'{median:.1f} M/s' for median in medians)} |", flush=True)


if __name__ == "__main__":
    main()

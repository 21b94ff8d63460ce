"""Preparing a corpus beside `datasets.map` + grouping + `save_to_disk`: speed, bytes on disk, memory.

Holds the measurement only. Both read the same JSON lines with the same tokenizer and the same number of processes, each
of one thread; the clock runs from the start of the command to its end, imports included. The peer does what the causal
language modelling example of transformers does.

    python -m bench.prepare
    python -m bench.prepare --megabytes 20 --rounds 1

Needs transformers and psutil (`pip install transformers psutil`).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import psutil

from bench.rounds import ROOT, machine
from pretrain.data.manifest import Manifest
from pretrain.data.sources.bad_records import BadRecords, OnInvalid
from pretrain.data.sources.base import StdlibSource
from pretrain.tokenizer.bpe import BpeTokenizer

PEER = ROOT / "bench" / "peers" / "map_and_group.py"
VOCABULARY = 16_384
POLL_S = 0.25  # seconds between two looks at memory


def write_corpus(path: Path, megabytes: int) -> int:
    """Write the standard library again and again, other names in each copy, until there is enough; return its bytes."""
    source = StdlibSource()
    units = source.units(source.inputs(), unit_bytes=2**20)
    originals = [text for unit in units for text in source.texts(unit, BadRecords(policy=OnInvalid.skip))]
    total = 0
    with path.open("w") as file:
        for number in itertools.count():
            for original in originals:
                text = renamed(original, number) if number else original
                file.write(json.dumps({"text": text}) + "\n")
                total += len(text.encode())
                if total >= megabytes * 1e6:
                    return total
    raise AssertionError("unreachable")


def renamed(text: str, number: int) -> str:
    """Give every fourth of the longer words another ending, in each copy to other words."""

    def change(word: re.Match[str]) -> str:
        return f"{word[0]}{number}" if zlib.crc32(f"{number} {word[0]}".encode()) % 4 == 0 else word[0]

    return re.sub(r"[A-Za-z_]{5,}", change, text)


def measure(command: list[str]) -> tuple[float, float, float]:
    """Run a command; return its seconds and the highest resident and proportional memory of its process tree, MB."""
    settings = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=os.environ | settings, stdout=log, stderr=log)
        resident = proportional = 0.0
        while process.poll() is None:
            rss, pss = tree_memory(process.pid)
            resident, proportional = max(resident, rss), max(proportional, pss)
            time.sleep(POLL_S)
        seconds = time.perf_counter() - began
        if process.returncode:
            log.seek(0)
            raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}\n{log.read()[-4000:]}")
    return seconds, resident, proportional


def tree_memory(pid: int) -> tuple[float, float]:
    """Return the resident and the proportional memory of a process and its descendants, MB."""
    rss = pss = 0
    try:
        tree = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return 0.0, 0.0
    for process in tree:
        try:
            memory = process.memory_full_info()
        except psutil.Error:  # it has just ended
            continue
        rss += memory.rss
        pss += memory.pss
    return rss / 1e6, pss / 1e6


def headwater(corpus: Path, tokenizer: Path, out: Path, processes: int) -> list[str]:
    """Return the command that prepares the corpus below `out`."""
    return [
        *(sys.executable, "-m", "pretrain.prepare", "data=packed", "+source@data.sources.bench=jsonl"),
        *(f"data.sources.bench.paths=[{corpus}]", "tokenizer=file", f"tokenizer.path={tokenizer}"),
        *(f"data.prepare.root={out}", f"data.prepare.workers={processes}"),
    ]


def peer(corpus: Path, tokenizer: Path, out: Path, processes: int) -> list[str]:
    """Return the peer's command."""
    return [sys.executable, str(PEER), str(corpus), str(tokenizer), str(out), str(processes)]


def stored(name: str, out: Path) -> float:
    """Return the bytes a token takes on disk, without the peer's caches."""
    if name == "headwater":
        [manifest] = out.glob("bench-*/manifest.json")
        tokens = sum(split.tokens for split in Manifest.load(manifest.parent).splits.values())
        files = list(manifest.parent.iterdir())
    else:
        tokens = json.loads((out / "tokens.json").read_text())
        files = [path for path in (out / "saved").rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in files) / tokens


def main() -> None:
    """Make the corpus and the tokenizer, run both in turn and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=60, help="size of the corpus")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    args = parser.parse_args()
    print(machine("tokenizers", "datasets", "transformers", "pyarrow"))
    print("| processes | who | MB/s, median | times the peer | bytes a token | peak RSS, MB | peak PSS, MB |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        corpus, tokenizer = directory / "corpus.jsonl", directory / "tokenizer.json"
        size = write_corpus(corpus, args.megabytes)
        with corpus.open() as file:
            texts = (json.loads(line)["text"] for line, _ in zip(file, range(500), strict=False))
            tokenizer.write_text(BpeTokenizer(vocab_size=VOCABULARY).train(texts))
        for processes in args.processes:
            taken: dict[str, list[tuple[float, float, float]]] = {"peer": [], "headwater": []}
            bytes_a_token = {}
            for _ in range(args.rounds):
                for name, command in (("peer", peer), ("headwater", headwater)):
                    out = directory / "out"
                    taken[name].append(measure(command(corpus, tokenizer, out, processes)))
                    bytes_a_token[name] = stored(name, out)
                    shutil.rmtree(out)
            speed = {name: size / 1e6 / statistics.median(run[0] for run in runs) for name, runs in taken.items()}
            for name, runs in taken.items():
                print(
                    f"| {processes} | {name} | {speed[name]:.2f} | {speed[name] / speed['peer']:.2f} "
                    f"| {bytes_a_token[name]:.2f} | {max(run[1] for run in runs):.0f} "
                    f"| {max(run[2] for run in runs):.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()

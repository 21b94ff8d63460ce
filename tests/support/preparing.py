"""Texts, settings and processes of preparation that several test modules use."""

import hashlib
import os
import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa

from pretrain.data.manifest import Manifest
from pretrain.data.prepare.config import PrepareConfig
from pretrain.data.sources.base import TextSource
from pretrain.prepare import arguments, plan_file

ROOT = Path(__file__).parents[2]
VOCABULARY = ["the", "quick", "fox", "jumps", "over", "a", "lazy", "dog", "def", "return", "self.x", "None", "is", "é"]


def story(seed: int, words: int = 400) -> str:
    chosen = random.Random(seed).choices(VOCABULARY, k=words)
    return f"story {seed}\n" + "\n".join(" ".join(chosen[start : start + 9]) for start in range(0, words, 9))


def write_stories(directory: Path, numbers) -> TextSource:
    directory.mkdir(exist_ok=True)
    for number in numbers:
        path = directory / f"{number:05d}.txt"
        path.write_text(story(number))
        os.utime(path, (1e9, 1e9))
    return TextSource(paths=[f"{directory}/*.txt"])


def config(root, **values) -> PrepareConfig:
    return PrepareConfig(**{"root": str(root), "held_out": 0.1, "workers": 1, "unit_bytes": 20_000} | values)


def rows(directory: Path, split: str) -> list[list[int]]:
    """The documents of a split, read with pyarrow alone."""
    shards = Manifest.load(directory).splits[split].shards
    return [
        row for shard in shards for row in pa.ipc.open_file(directory / shard.file).read_all()["tokens"].to_pylist()
    ]


def contents(root: Path) -> dict[str, str]:
    """Every file below a directory with the hash of its bytes, but locks: they name their last holder."""
    files = sorted(path for path in root.rglob("*") if path.is_file() and path.parent.name != ".locks")
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def start(sources, tokenizer, cfg, **options) -> subprocess.Popen:
    """Call `prepare` in a process of its own, the one that `python -m pretrain.prepare` becomes."""
    with plan_file(sources, tokenizer, cfg) as plan:
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        command = [sys.executable, *arguments(plan)]
        return subprocess.Popen(command, cwd=ROOT, pass_fds=[plan.fileno()], **streams, **options)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def records(root: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for path in root.glob("*.partial/units/[0-9]*.json"):
        status = path.stat()
        found[path.name] = status.st_ino, status.st_mtime_ns
    return found

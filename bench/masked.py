"""Masked-language-model training on documents of natural lengths, against the Hugging Face Trainer; real tokens only.

Holds the claim and its table; measuring is in `rounds`, the peer in `peers/trainer_masked`.

    python -m bench.masked
    python -m bench.masked headwater headwater-dropout trainer-padded trainer-padded-dropout --rounds 30

The documents are the functions of Python's standard library. Needs transformers (`pip install transformers`).
"""

from __future__ import annotations

import argparse
import ast
import json
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from bench.contestants import PEERS
from bench.rounds import ROOT, Runner, environment, interleaved, machine
from pretrain.data.manifest import Manifest

LAYERS, WIDTH, HEADS, SEQ_LEN, VOCABULARY = 6, 384, 6, 512, 12288
DOCUMENTS, SLOTS, BLOCKS = 32, 8, 8  # in an optimizer step: of the Trainer, of Headwater, of the Trainer's blocks
LONGEST_CHARS = 1200  # of a document: so that none has more than SEQ_LEN tokens
WARM_UP = 3  # steps of each contestant that do not count
DEFAULT = ["headwater", "trainer-padded", "trainer-grouped", "trainer-joined"]


def functions() -> Iterator[str]:
    """Yield the source of the standard library's functions."""
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        if {"test", "tests", "idlelib", "site-packages"} & set(path.relative_to(library).parts):
            continue
        try:
            text = path.read_text()
            tree = ast.parse(text)
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                source = ast.get_source_segment(text, node) or ""
                if len(source) <= LONGEST_CHARS:
                    yield source


@dataclass(frozen=True)
class Arena:
    """One corpus, prepared in a folder, in Headwater's form and in the peer's."""

    work: Path
    threads: int

    def prepare(self) -> str:
        """Prepare the corpus; return a line on the lengths of its documents."""
        with (self.work / "functions.jsonl").open("w") as out:
            for source in functions():
                out.write(json.dumps({"text": source}) + "\n")
        command = [sys.executable, "-m", "pretrain.prepare", *self._corpus()]
        subprocess.run(command, check=True, cwd=ROOT, env=environment(self.threads), stdout=subprocess.DEVNULL)
        (path,) = (self.work / "corpora").glob("*/manifest.json")
        ids, lengths = [], []
        for shard in Manifest.load(path.parent).splits["train"].shards:
            with pa.memory_map(str(path.parent / shard.file)) as source:
                for chunk in pa.ipc.open_file(source).read_all()["tokens"].chunks:
                    ids.append(chunk.flatten().to_numpy())
                    lengths.append(np.diff(chunk.offsets.to_numpy()))
        size = np.concatenate(lengths)
        assert size.max() <= SEQ_LEN, f"a document of {size.max()} tokens is a window too many"
        np.savez(self.work / "tokens.npz", ids=np.concatenate(ids), offsets=np.concatenate([[0], size.cumsum()]))
        (self.work / "tokenizer.json").write_bytes((path.parent / "tokenizer.json").read_bytes())
        quartiles = np.percentile(size, [25, 50, 75]).astype(int).tolist()
        mean = f"{len(size):,} documents of {size.mean():.0f} tokens on average"
        return f"{mean}, quartiles {quartiles}, longest {size.max()}"

    def enter(self, name: str, steps: int) -> Runner:
        """Return a contestant, ready to start on a run of so many steps."""
        who, *flags = name.split("-")
        dropout = 0.1 if "dropout" in flags else 0.0
        folder = self.work / name
        if who == "headwater":
            return Runner(self._headwater(name, steps, dropout), folder, self._lines(name), self.threads)
        [batching] = set(flags) & {"padded", "grouped", "joined"}
        return Runner(self._trainer(batching, steps, dropout), folder, self._lines(name), self.threads)

    def tokens(self, name: str) -> list[int]:
        """Return the real tokens of every step that a contestant has taken."""
        lines = [json.loads(line) for line in self._lines(name).read_text().splitlines() if line.startswith('{"step"')]
        counts = [line["tokens"] for line in lines]
        return np.diff([0, *counts]).tolist() if name.startswith("headwater") else counts

    def _lines(self, name: str) -> Path:
        if name.startswith("headwater"):
            return self.work / "runs" / name / "metrics.jsonl"
        return self.work / name / "out.txt"

    def _headwater(self, name: str, steps: int, dropout: float) -> list[str]:
        return [
            *(sys.executable, "-m", "pretrain", *self._corpus(), "data.packing=windows", f"data.seq_len={SEQ_LEN}"),
            *(f"run.root={self.work / 'runs'}", f"run.name={name}", "run.fresh=true"),
            *("model=encoder", f"model.layers={LAYERS}", f"model.width={WIDTH}", f"model.heads={HEADS}"),
            *("objective=masked_lm", f"model.dropout={dropout}", "optim.lr=1e-4"),
            *(f"train.batch_size={SLOTS}", f"train.micro_batch_size={SLOTS}", f"train.steps={steps}"),
            *("log.every=1", "eval.every=0", f"checkpoint.every={10**9}"),
        ]

    def _trainer(self, batching: str, steps: int, dropout: float) -> list[str]:
        batch = BLOCKS if batching == "joined" else DOCUMENTS
        return [
            *(sys.executable, str(PEERS / "trainer_masked.py")),
            *(str(self.work / "tokens.npz"), str(self.work / "tokenizer.json"), "--batching", batching),
            *("--steps", str(steps), "--layers", str(LAYERS), "--width", str(WIDTH), "--heads", str(HEADS)),
            *("--seq-len", str(SEQ_LEN), "--batch", str(batch), "--lr", "1e-4", "--dropout", str(dropout)),
        ]

    def _corpus(self) -> list[str]:
        return [
            *("data=jsonl", f"data.sources.jsonl.paths=[{self.work / 'functions.jsonl'}]"),
            *(f"data.prepare.root={self.work / 'corpora'}", "data.prepare.held_out=0"),
            *("tokenizer=wordpiece", f"tokenizer.vocab_size={VOCABULARY}"),
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contestants", nargs="*", default=DEFAULT, help=f"default: {' '.join(DEFAULT)}")
    parser.add_argument("--rounds", type=int, default=20, help="steps of each contestant that count")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        arena = Arena(Path(folder), args.threads)
        corpus = arena.prepare()
        runners = {name: arena.enter(name, WARM_UP + args.rounds + 1) for name in args.contestants}
        seconds = interleaved(runners, WARM_UP, args.rounds)
        tokens = {name: arena.tokens(name)[WARM_UP : WARM_UP + args.rounds] for name in args.contestants}
    print(f"BERT {LAYERS} x {WIDTH}, vocabulary {VOCABULARY:,}, {corpus}")
    print(f"{args.threads} threads, {args.rounds} interleaved steps; {machine('torch', 'transformers')}")
    # All tokens over all seconds: batches of uneven documents differ, so that a median step would favour short ones.
    speed = {name: sum(tokens[name]) / sum(seconds[name]) for name in args.contestants}
    print(f"{'':<26}{'real tokens/s':>14}{'a step':>9}{'median s':>10}   Headwater's speed over this one's")
    for name in args.contestants:
        counterpart = "headwater-dropout" if name.endswith("dropout") else "headwater"
        ratio = f"{speed[counterpart] / speed[name]:.2f}" if counterpart in speed else ""
        row = f"{speed[name]:>14,.0f}{statistics.mean(tokens[name]):>9,.0f}{statistics.median(seconds[name]):>10.2f}"
        print(f"{name:<26}{row}   {ratio}")


if __name__ == "__main__":
    main()

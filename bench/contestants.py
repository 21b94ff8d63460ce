"""What is compared: one workload, its data, and the command by which each contestant trains it.

Holds no measuring, which is in `rounds`, and no training: `peers/` has a script for each that is not Headwater.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from bench.rounds import ROOT, Runner, environment
from pretrain.data.manifest import Manifest

PEERS = ROOT / "bench" / "peers"
SCRIPTS = {"trainer": "trainer.py", "plain": "plain.py", "litgpt": "litgpt_loop.py"}
FLAGS = ("gelu", "compiled", "joined", "guarded")


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The shape of a GPT-2 and of its batches; fp32, AdamW, gradients clipped at 1, no dropout."""

    layers: int
    width: int
    heads: int
    seq_len: int = 256  # tokens
    vocab: int = 16384  # token ids
    batch: int = 8  # sequences in an optimizer step
    lr: float = 1e-3  # peak learning rate

    @property
    def step_tokens(self) -> int:
        """Return the tokens of one optimizer step."""
        return self.batch * self.seq_len


@dataclass(frozen=True)
class Contestant:
    """Who trains, and how: `trainer`, `trainer-gelu`, `trainer-gelu-compiled`, `headwater-guarded`, ..."""

    who: str  # headwater, trainer, plain or litgpt
    flags: frozenset[str]

    @classmethod
    def named(cls, name: str) -> Contestant:
        """Read a name. Raises `SystemExit` for one that is not known."""
        who, *flags = name.split("-")
        if who not in ("headwater", *SCRIPTS) or not set(flags) <= set(FLAGS):
            raise SystemExit(f"{name}: headwater, {', '.join(SCRIPTS)}, each with any of -{', -'.join(FLAGS)}")
        return cls(who, frozenset(flags))

    @property
    def counterpart(self) -> str:
        """Return the name of Headwater as it comes, with the same activation and compilation."""
        return "-".join(["headwater", *(flag for flag in FLAGS[:2] if flag in self.flags)])


@dataclass(frozen=True, kw_only=True)
class Arena:
    """One workload, prepared in a folder."""

    work: Path
    workload: Workload
    threads: int
    litgpt_python: str  # interpreter of an environment that has litgpt

    @property
    def tokens(self) -> Path:
        """Return the corpus as the peers read it: a flat file of uint16 ids."""
        return self.work / "tokens.bin"

    def prepare(self) -> None:
        """Make Python's standard library the corpus of all contestants."""
        command = [sys.executable, "-m", "pretrain.prepare", *self._corpus()]
        subprocess.run(command, check=True, cwd=ROOT, env=environment(self.threads), stdout=subprocess.DEVNULL)
        (path,) = (self.work / "corpora").glob("*/manifest.json")
        with self.tokens.open("wb") as out:
            for shard in Manifest.load(path.parent).splits["train"].shards:
                with pa.memory_map(str(path.parent / shard.file)) as source:
                    for chunk in pa.ipc.open_file(source).read_all()["tokens"].chunks:
                        out.write(chunk.flatten().to_numpy().astype(np.uint16).tobytes())

    def enter(self, contestant: Contestant, name: str, steps: int) -> Runner:
        """Return a contestant, ready to start on a run of so many steps that keeps its files under `name`."""
        folder = self.work / name
        if contestant.who == "headwater":
            lines = self.work / "runs" / name / "metrics.jsonl"
            return Runner(self._headwater(contestant, name, steps), folder, lines, self.threads)
        return Runner(self._peer(contestant, steps), folder, folder / "out.txt", self.threads)

    def _headwater(self, contestant: Contestant, name: str, steps: int) -> list[str]:
        workload = self.workload
        return [
            *(sys.executable, "-m", "pretrain", *self._corpus(), f"data.seq_len={workload.seq_len}"),
            *(f"run.root={self.work / 'runs'}", f"run.name={name}", "run.fresh=true"),
            *("model=gpt2_124m", f"model.layers={workload.layers}", f"model.width={workload.width}"),
            f"model.heads={workload.heads}",
            f"model.activation={'gelu' if 'gelu' in contestant.flags else 'gelu_tanh'}",
            f"data.isolate_documents={'false' if 'joined' in contestant.flags else 'true'}",
            f"guard={'sigma' if 'guarded' in contestant.flags else 'none'}",
            f"compile={'block' if 'compiled' in contestant.flags else 'none'}",
            *(f"train.batch_size={workload.batch}", f"train.micro_batch_size={workload.batch}", f"train.steps={steps}"),
            *(f"optim.lr={workload.lr}", "log.every=1", "eval.every=0", f"checkpoint.every={10**9}"),
        ]

    def _peer(self, contestant: Contestant, steps: int) -> list[str]:
        workload = self.workload
        python = self.litgpt_python if contestant.who == "litgpt" else sys.executable
        return [
            *(python, str(PEERS / SCRIPTS[contestant.who]), str(self.tokens), "--steps", str(steps)),
            *("--layers", str(workload.layers), "--width", str(workload.width), "--heads", str(workload.heads)),
            *("--seq-len", str(workload.seq_len), "--vocab", str(workload.vocab), "--batch", str(workload.batch)),
            *("--lr", str(workload.lr), "--activation", "gelu" if "gelu" in contestant.flags else "gelu_new"),
            *(["--compile"] if "compiled" in contestant.flags else []),
        ]

    def _corpus(self) -> list[str]:
        root = self.work / "corpora"
        return ["data=stdlib", f"data.prepare.root={root}", f"tokenizer.vocab_size={self.workload.vocab}"]

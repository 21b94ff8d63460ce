"""What pretraining is worth: the long demo's BERT and the same network from random weights learn one synthetic task.

Holds the claim and its table; the task is made by `examples/synthetic_tasks.py`, runs are the product's own.

    python -m bench.pretraining_helps
    python -m bench.pretraining_helps --run runs/demo_bert_long
    python -m bench.pretraining_helps --unseen

Without --run it pretrains first. The demo's corpus has the functions of the validation set, without labels; with
--unseen it is the same library without their lines. Both initialisations have the same data, steps and learning rates;
compare each at its best learning rate. The last step is measured, so nothing was selected on the validation set.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from bench.rounds import ROOT, environment, machine
from pretrain.data.sources.base import StdlibSource
from pretrain.report.history import load

TASK = Path("data", "synthetic", "packages")  # in the folder of the runs, as the experiment has it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a run of experiment=demo_bert_long")
    parser.add_argument("--unseen", action="store_true", help="pretrain without the functions of the validation set")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--lrs", type=float, nargs="+", default=[3e-4, 1e-3])
    parser.add_argument("--epochs", type=float, nargs="+", default=[3.0, 6.0])
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if args.run and args.unseen:
        parser.error("--unseen pretrains a run of its own: leave out --run")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        called(folder, args.threads, str(ROOT / "examples" / "synthetic_tasks.py"))
        run = args.run.resolve() if args.run else pretrained(folder, args.threads, unseen=args.unseen)
        print(f"seeds {args.seeds}; {args.threads} threads; {machine('torch')}")
        print(f"{'most frequent label':<38}{chance(folder):>8.4f}")
        print(f"{'words counted, logistic regression':<38}{counted(folder):>8.4f}")
        for epochs, scratch, lr in product(args.epochs, (False, True), args.lrs):
            found = [accuracy(folder, args.threads, run, epochs, scratch, lr, seed) for seed in args.seeds]
            row = f"{epochs:g} epochs, {'from scratch' if scratch else 'pretrained'}, lr {lr:g}"
            spread = statistics.stdev(found) if len(found) > 1 else 0.0
            print(f"{row:<38}{statistics.mean(found):>8.4f} ± {spread:.4f}", flush=True)


def accuracy(folder: Path, threads: int, run: Path, epochs: float, scratch: bool, lr: float, seed: int) -> float:
    """Fine-tune once; return the accuracy at the last step."""
    name = f"epochs-{epochs:g}-scratch-{scratch}-lr-{lr:g}-seed-{seed}"
    called(
        *(folder, threads, "-m", "finetune", "experiment=synthetic/packages", f"init_from={run}", f"run.name={name}"),
        *(f"scratch={scratch}", f"optim.lr={lr}", f"train.epochs={epochs}", f"seed={seed}", f"eval.every={10**9}"),
    )
    return load(folder / "runs" / name).evaluation[-1]["accuracy"]


def called(folder: Path, threads: int, *arguments: str) -> None:
    """Run a Python command in a folder."""
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment(threads), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}\nexit code {done.returncode}")


def pretrained(folder: Path, threads: int, *, unseen: bool) -> Path:
    """Run experiment=demo_bert_long; return its run."""
    corpus = []
    if unseen:
        write_unseen(folder)
        corpus = ["data=text", 'data.sources.text.paths=["library/**/*.py"]']
    called(folder, threads, "-m", "pretrain", "experiment=demo_bert_long", *corpus)
    return folder / "runs" / "demo_bert_long"


def write_unseen(folder: Path) -> None:
    """Write the files of the library without the lines of the functions of the validation set."""
    cut = defaultdict(set)
    for record in records(folder, "validation"):
        first, last = record["lines"]
        cut[record["file"]] |= set(range(first, last + 1))
    root = Path(sysconfig.get_path("stdlib"))
    for entry in StdlibSource().inputs():
        with tokenize.open(root / entry.name) as file:
            lines = enumerate(file.read().split("\n"), 1)
        path = folder / "library" / entry.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(line for number, line in lines if number not in cut[entry.name]), encoding="utf-8")


def records(folder: Path, split: str) -> Iterator[dict]:
    return map(json.loads, (folder / TASK / f"{split}.jsonl").read_text(encoding="utf-8").splitlines())


def chance(folder: Path) -> float:
    labels = [record["label"] for record in records(folder, "validation")]
    return max(map(labels.count, labels)) / len(labels)


def counted(folder: Path) -> float:
    """Return the accuracy of a linear classifier of words, which are weighted by how rare they are."""
    (texts, labels), (others, theirs) = (
        zip(*((record["text"], record["label"]) for record in records(folder, split)), strict=True)
        for split in ("train", "validation")
    )
    words = TfidfVectorizer(token_pattern=r"[A-Za-z]+|[^\w\s]", sublinear_tf=True)
    model = LogisticRegression(C=10, max_iter=1000).fit(words.fit_transform(texts), labels)
    return float(model.score(words.transform(others), theirs))


if __name__ == "__main__":
    main()

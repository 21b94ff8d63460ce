"""One screen about the runs of `make demo` and `make demo-long`: what was trained, how good it is, where to look next.

    python examples/demo_summary.py [_long]

reads `runs/` and `data/synthetic/` in the current folder, and sets a baseline beside each score.
"""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from finetune.tasks.seq2seq.metrics import text_metrics
from pretrain.report.baselines import baselines
from pretrain.report.history import History, load

RUNS = Path("runs")
TASKS = Path("data/synthetic")
NAMES = ("demo", "demo_bert", "synthetic_packages", "synthetic_names")
PAIRS = "synthetic_pairs"

NEXT = """\
Look at    {gpt}/report/report.html, and report/report.html of each run: curves, baselines, worst errors
Sample     python -m pretrain.sample {gpt} --prompt "import "
Export     python -m pretrain.export {gpt}, for AutoModelForCausalLM.from_pretrained("{gpt}/export")
Next       your own text: README.md; your own task: docs/finetuning.md; longer: make demo-long
These commands need the environment: source .venv/bin/activate"""


def main() -> None:
    """Print the summary."""
    suffix = "".join(sys.argv[1:])
    gpt, bert, packages, names = (load(RUNS / f"{run}{suffix}") for run in NAMES)
    corpora = gpt.facts["corpora"]
    assert isinstance(corpora, dict), "pretraining records its corpora by name"
    compressors = ", ".join(f"{name} {bits:.2f}" for name, bits in baselines(map(Path, corpora.values())).items())
    lines = [
        ("GPT", size(gpt)),
        ("", f"held-out loss {last(gpt, 'loss'):.3f}, {last(gpt, 'bits_per_byte'):.2f} bits per byte ({compressors})"),
        ("BERT", size(bert)),
        ("", f"held-out loss {last(bert, 'loss'):.3f}, {last(bert, 'accuracy'):.1%} of the masked tokens right"),
        ("packages", f"{last(packages, 'accuracy'):.1%} of held-out functions are given the package they are from"),
        ("", f"(always the most frequent package: {most_frequent_label():.1%})"),
        ("names", f"{last(names, 'accuracy'):.1%} of held-out words are given the kind of name that they are"),
        ("", f"(each word's most frequent tag: {most_frequent_tags():.1%})"),
    ]
    if (RUNS / f"{PAIRS}{suffix}").is_dir():  # of make demo-pairs, which is in demo-long alone
        lines += about_pairs(load(RUNS / f"{PAIRS}{suffix}"))
    print("", *(f"{name:<10} {text}" for name, text in lines), "", NEXT.format(gpt=gpt.path), sep="\n")


def about_pairs(run: History) -> list[tuple[str, str]]:
    """Return the lines about the translator."""
    pairs = records("pairs", "validation")
    copied = text_metrics([pair["code"] for pair in pairs], [pair["words"] for pair in pairs], ["bleu", "exact_match"])
    return [
        (
            "pairs",
            f"{last(run, 'exact_match'):.1%} of held-out expressions are said right, BLEU {last(run, 'bleu'):.1f}",
        ),
        ("", f"(copied as they are: {copied['exact_match']:.1%}, BLEU {copied['bleu']:.1f})"),
    ]


def size(run: History) -> str:
    """Return how large a model is, and how much it has read."""
    parameters, ranks, tokens = run.facts["parameters"], run.facts["ranks"], run.train[-1]["tokens"]
    strategy = f"{run.config['strategy']}{run.config.get('strategy.stage', '')}"
    return f"{parameters:,} parameters, {tokens:,.0f} tokens, {ranks} ranks with {strategy}: {run.path}"


def last(run: History, metric: str) -> float:
    """Return a metric of the last evaluation."""
    return run.evaluation[-1][metric]


def most_frequent_label() -> float:
    """Return the accuracy of always answering the most frequent label of the training set of `packages`."""
    [(label, _)] = Counter(record["label"] for record in records("packages", "train")).most_common(1)
    labels = [record["label"] for record in records("packages", "validation")]
    return labels.count(label) / len(labels)


def most_frequent_tags() -> float:
    """Return the accuracy of giving each word its most frequent tag in the training set of `names`; O to new words."""
    seen: dict[str, Counter[str]] = defaultdict(lambda: Counter(["O"]))
    for record in records("names", "train"):
        for word, tag in zip(record["words"], record["tags"], strict=True):
            seen[word][tag] += 1
    pairs = [
        pair for record in records("names", "validation") for pair in zip(record["words"], record["tags"], strict=True)
    ]
    return sum(seen[word].most_common(1)[0][0] == tag for word, tag in pairs) / len(pairs)


def records(task: str, split: str) -> list[dict[str, Any]]:
    """Read one set of a task."""
    return [json.loads(line) for line in (TASKS / task / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    main()

"""SQuAD 2.0: whether the no-answer threshold that is best on one half of held-out articles improves the other half.

Holds the division and the table; threshold and metrics are Headwater's, there is no peer.

    python -m bench.unanswerable MODEL train-v1.1.json.gz dev-v2.0.json.gz

The training set of 2.0 is not needed: learnt are questions of 1.1, which all have an answer, and the questions of
`--share` of the articles of the 2.0 file, of which about half have none. The other articles are held out, in two
halves that have no article in common.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from bench.rounds import ROOT, environment, machine
from bench.subsets import Squad, keep_questions, question_ids, read_squad
from finetune.trained import FineTunedModel, load

ALWAYS_ANSWER = 1e9  # a threshold that no logits exceed
HALVES = ("a", "b")


def divided(squad: Squad, share: float, generator: random.Random) -> tuple[Squad, dict[str, Squad]]:
    """Return a share of the articles to learn from, and the others in two halves of about as many questions."""
    articles = generator.sample(squad["data"], len(squad["data"]))
    learnt = round(share * len(articles))
    halves: dict[str, list] = {half: [] for half in HALVES}
    sizes = dict.fromkeys(HALVES, 0)
    for article in articles[learnt:]:
        smaller = min(HALVES, key=lambda half: sizes[half])
        halves[smaller].append(article)
        sizes[smaller] += sum(len(paragraph["qas"]) for paragraph in article["paragraphs"])
    return squad | {"data": articles[:learnt]}, {half: squad | {"data": found} for half, found in halves.items()}


def write(work: Path, args: argparse.Namespace) -> None:
    """Write the training set and both halves, and say how large they are."""
    generator = random.Random(args.seed)
    answerable = read_squad(args.answerable)
    kept = keep_questions(answerable, set(generator.sample(question_ids(answerable), args.answerable_questions)))
    learnt, halves = divided(read_squad(args.squad2), args.share, generator)
    for name, squad in {"train": {"data": kept["data"] + learnt["data"]}, **halves}.items():
        (work / f"{name}.json").write_text(json.dumps(squad))
        asked = [question for a in squad["data"] for p in a["paragraphs"] for question in p["qas"]]
        without = sum(not question["answers"] for question in asked)
        print(f"{name}: {len(asked)} questions, {without} of them without an answer, {len(squad['data'])} articles")


def fine_tune(work: Path, args: argparse.Namespace) -> FineTunedModel:
    """Fine-tune, measuring half a; return the model after the last step."""
    command = [
        *(sys.executable, "-m", "finetune", "task=qa", "task.unanswerable=true", f"init_from={args.model.resolve()}"),
        *(f"task.train={work / 'train.json'}", f"task.validation={work / 'a.json'}", f"seed={args.seed}"),
        *(f"train.epochs={args.epochs}", "train.batch_size=12", "optim.lr=3e-5", "optim.weight_decay=0"),
        *(f"attention_dropout={args.attention_dropout}", "attention=sdpa"),
        *(f"run.root={work}", "run.name=run", f"eval.every={10**9}"),
    ]
    done = subprocess.run(command, cwd=ROOT, env=environment(args.threads), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"exit code {done.returncode}\n{done.stderr[-2000:]}")
    return load(work / "run")


def compare(trained: FineTunedModel, files: dict[str, Path]) -> None:
    """Print what each half reaches with several thresholds, the one that is best on the other half among them."""
    encoded = {half: trained.encode(str(path), labelled=True) for half, path in files.items()}
    logits = {half: trained.answers(found, max_tokens=4096).logits for half, found in encoded.items()}

    def measure(half: str, threshold: float | None) -> dict[str, float]:
        task = replace(trained.cfg.task, no_answer_threshold=threshold)
        return task.measure(encoded[half], logits[half], trained.names)

    print(f"{'half':<6}{'threshold':<26}{'':>10}{'F1':>8}{'EM':>8}{'F1 answer':>11}{'F1 none':>9}")
    for half, other in zip(HALVES, reversed(HALVES), strict=True):
        found = measure(other, None)["no_answer_threshold"]
        thresholds = {
            "none: always answer": ALWAYS_ANSWER,
            "0: the likelier": 0.0,
            f"best on half {other}": found,
            f"best on half {half} itself": None,
        }
        for name, threshold in thresholds.items():
            values = measure(half, threshold)
            told = f"{values['no_answer_threshold']:.3g}"
            scores = [100 * values[key] for key in ("f1", "exact_match", "has_answer_f1", "no_answer_f1")]
            print(f"{half:<6}{name:<26}{told:>10}{scores[0]:>8.2f}{scores[1]:>8.2f}{scores[2]:>11.2f}{scores[3]:>9.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="directory of a released checkpoint")
    parser.add_argument("answerable", type=Path, help="a training file of SQuAD 1.1")
    parser.add_argument("squad2", type=Path, help="a file of SQuAD 2.0")
    parser.add_argument("--answerable-questions", type=int, default=4000, help="of 1.1, default %(default)s")
    parser.add_argument("--share", type=float, default=0.5, help="of the articles of 2.0 to learn, default %(default)s")
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--attention-dropout", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    print(machine("torch"))
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write(work, args)
        trained = fine_tune(work, args)
        compare(trained, {half: work / f"{half}.json" for half in HALVES})


if __name__ == "__main__":
    main()

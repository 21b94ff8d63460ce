"""Subsets of the public data sets that fine-tuning is measured on, made from the files as they are distributed.

Holds the choosing, by a seed, and the formats; what is measured on them is in the scripts that read them.

    python -m bench.subsets imdb OUT aclImdb.tar.xz --train 5000 --test 2000
    python -m bench.subsets ag_news OUT train.csv test.csv --train 5000
    python -m bench.subsets sst2 OUT train.tsv dev.tsv --train 5000
    python -m bench.subsets squad OUT train-v1.1.json.gz dev-v1.1.json.gz --train 8000 --first 1000

Texts become OUT/train.jsonl and OUT/test.jsonl with the columns text and label; questions become OUT/train.json and
OUT/test.json in SQuAD's own layout. Without a number all of a split is taken.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import random
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Row = dict[str, str]  # text, label
Squad = dict[str, Any]

TOPICS = {"1": "World", "2": "Sports", "3": "Business", "4": "Sci/Tech"}  # AG News, as its classes.txt has them


def imdb(archive: Path) -> tuple[list[Row], list[Row]]:
    """Return the labelled reviews of training and of testing; a break of lines in HTML becomes a space."""
    splits: dict[str, list[tuple[str, Row]]] = {"train": [], "test": []}
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = Path(member.name).parts[1:]  # split, label, file
            if len(parts) == 3 and parts[0] in splits and parts[1] in ("pos", "neg") and parts[2].endswith(".txt"):
                file = tar.extractfile(member)
                assert file is not None, f"{member.name} is no file"
                text = " ".join(file.read().decode().replace("<br />", " ").split())
                splits[parts[0]].append((member.name, {"text": text, "label": parts[1]}))
    train, test = ([row for _, row in sorted(rows, key=lambda named: named[0])] for rows in splits.values())
    return train, test


def ag_news(train: Path, test: Path) -> tuple[list[Row], list[Row]]:
    """Return the descriptions of news, without their titles: CSV as distributed, or TSV of text and topic."""
    return _news(train), _news(test)


def _news(path: Path) -> list[Row]:
    with path.open(encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            rows = [(description, TOPICS[topic]) for topic, _, description in csv.reader(file)]
        else:
            rows = [(text, topic) for text, topic in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]
    return [{"text": text, "label": topic} for text, topic in rows if text.strip()]


def sst2(train: Path, test: Path) -> tuple[list[Row], list[Row]]:
    """Return the sentences of GLUE's files, which have the columns sentence and label."""
    return _sentences(train), _sentences(test)


def _sentences(path: Path) -> list[Row]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [{"text": row["sentence"].strip(), "label": row["label"]} for row in rows]


def read_squad(path: Path) -> Squad:
    """Return the contents of a file in SQuAD's layout, compressed or not."""
    return json.loads(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_text())


def question_ids(squad: Squad) -> list[str]:
    """Return the ids of all questions in the order of the file."""
    return [question["id"] for question in _questions(squad)]


def _questions(squad: Squad) -> Iterator[dict[str, Any]]:
    for article in squad["data"]:
        for paragraph in article["paragraphs"]:
            yield from paragraph["qas"]


def keep_questions(squad: Squad, ids: set[str]) -> Squad:
    """Return the questions with these ids, in the same layout; articles and paragraphs without one are left out."""
    articles = []
    for article in squad["data"]:
        paragraphs = [
            paragraph | {"qas": kept}
            for paragraph in article["paragraphs"]
            if (kept := [question for question in paragraph["qas"] if question["id"] in ids])
        ]
        if paragraphs:
            articles.append(article | {"paragraphs": paragraphs})
    return squad | {"data": articles}


def write_rows(path: Path, rows: list[Row]) -> None:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["imdb", "ag_news", "sst2", "squad"])
    parser.add_argument("out", type=Path)
    parser.add_argument("files", type=Path, nargs="+", help="the archive of IMDb, or the files of train and test")
    parser.add_argument("--train", type=int, default=None, help="examples for training, drawn by the seed")
    parser.add_argument("--test", type=int, default=None, help="examples for testing, drawn by the seed")
    parser.add_argument("--first", type=int, default=None, help="of the test split the first so many, before drawing")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    generator = random.Random(args.seed)

    def drawn(items: list, number: int | None) -> list:
        return items if number is None else generator.sample(items, number)

    if args.kind == "squad":
        for name, path, first, number in zip(
            ("train", "test"), args.files, (None, args.first), (args.train, args.test), strict=True
        ):
            squad = read_squad(path)
            part = keep_questions(squad, set(drawn(question_ids(squad)[:first], number)))
            (args.out / f"{name}.json").write_text(json.dumps(part))
        return
    train, test = {"imdb": imdb, "ag_news": ag_news, "sst2": sst2}[args.kind](*args.files)
    write_rows(args.out / "train.jsonl", drawn(train, args.train))
    write_rows(args.out / "test.jsonl", drawn(test[: args.first], args.test))


if __name__ == "__main__":
    main()

"""Multiple-choice questions made from the source code of Python's own standard library, to try `eval.choices` at once.

    python examples/synthetic_choices.py data/synthetic

writes `next_line.jsonl`: which of four lines follows these lines of code? Contexts and right answers are from files
that a run with `data=stdlib data.prepare.held_out=0.05` holds out, as `experiment=demo` does, so that it has not read
them; with another share it has read some. The three wrong lines are from elsewhere in the same file, with the same
indentation. Nobody wrote these questions: a wrong line may fit as well, and accuracy says how well a model knows such
code, no more.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sysconfig
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from pretrain.data.prepare.held_out import is_held_out
from pretrain.data.sources.base import StdlibSource

HELD_OUT = 0.05  # share of the files, as in experiment=demo
NUM_QUESTIONS = 200
MOST_OF_A_FILE = 12  # questions
NUM_LINES = 6  # of a context
NUM_CHOICES = 4
MIN_CHARACTERS = 12  # of a choice, without its indentation


def main() -> None:
    """Write the questions into the folder that the command line names."""
    parser = argparse.ArgumentParser(description="Make multiple-choice questions of Python's standard library.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("data/synthetic"))
    file = parser.parse_args().folder / "next_line.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    records = questions(held_out_files())
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    print(f"{file}: {len(records):,} questions")


def held_out_files() -> Iterator[tuple[str, str]]:
    """Yield name and text of the library's files that are held out."""
    root = Path(sysconfig.get_path("stdlib"))
    for entry in StdlibSource().inputs():
        data = (root / entry.name).read_bytes()
        if is_held_out(data, HELD_OUT):
            yield entry.name, data.decode(errors="ignore")


def questions(files: Iterable[tuple[str, str]]) -> list[dict[str, Any]]:
    """Return the questions on some files, the same everywhere: `context`, `choices`, `answer`, and where it is from."""
    found = [record for name, text in files for record in islice(_questions_of(name, text), MOST_OF_A_FILE)]
    return sorted(found, key=lambda record: _hash(record["file"], str(record["line"])))[:NUM_QUESTIONS]


def _questions_of(file: str, text: str) -> Iterator[dict[str, Any]]:
    """Yield questions on a file, in the order of a hash, so that they do not depend on one another."""
    lines = text.splitlines()
    alike: dict[int, list[str]] = defaultdict(list)  # the lines of each indentation
    for line in dict.fromkeys(filter(_says_something, lines)):
        alike[_indentation(line)].append(line)
    for number in sorted(range(NUM_LINES, len(lines)), key=lambda number: _hash(file, str(number + 1))):
        right, before = lines[number], lines[number - NUM_LINES : number]
        others = [line for line in alike[_indentation(right)] if line != right and line not in before]
        if not _says_something(right) or right in before or not before[-1].strip() or len(others) < NUM_CHOICES - 1:
            continue
        wrong = sorted(others, key=lambda line: _hash(file, str(number), line))[: NUM_CHOICES - 1]
        choices = sorted([right, *wrong], key=lambda line: _hash(str(number), file, line))
        context = "".join(f"{line}\n" for line in before)
        yield {"context": context, "choices": choices, "answer": choices.index(right), "file": file, "line": number + 1}


def _says_something(line: str) -> bool:
    return len(line.strip()) >= MIN_CHARACTERS


def _indentation(line: str) -> int:
    return len(line) - len(line.lstrip())


def _hash(*words: str) -> bytes:
    return hashlib.sha256("\0".join(words).encode(errors="replace")).digest()


if __name__ == "__main__":
    main()

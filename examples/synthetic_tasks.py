"""Two labelled tasks made from the source code of Python's own standard library, to try fine-tuning on at once.

    python examples/synthetic_tasks.py data/synthetic

writes `packages/` and `names/`, each with `train.jsonl` and `validation.jsonl`. Both are about functions as
`ast.unparse` writes them: in one style, without decorators, docstring and comments. Nobody labelled these tasks, and a
score on them says nothing about other tasks. A model pretrained with `data=stdlib` has read the functions, without
their labels.

packages (classification): which of twelve packages is this function from? Functions that contain the name of one of the
packages are left out. Training and validation share no class and no function at the top level of a file, no code, and
no near-duplicates. They do share packages, hence authors: what is measured is new functions of known packages.

names (tags): is this name a parameter, a local variable, an attribute or a global? Training and validation share no
file.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import re
import sysconfig
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pretrain.data.sources.base import StdlibSource

Function = ast.FunctionDef | ast.AsyncFunctionDef
Split = tuple[list[dict[str, Any]], list[dict[str, Any]]]  # records for training and for validation

PACKAGES = ["asyncio", "email", "http", "importlib", "inspect", "logging"]
PACKAGES += ["mailbox", "multiprocessing", "typing", "unittest", "urllib", "xml"]
NUM_VALIDATION = 25  # functions of each package
MOST_TRAINING = 120  # functions of each package
MOST_OF_A_CLASS = 16  # functions, lest one class make up a package
MIN_CHARACTERS = 80  # of a function
NEAR_DUPLICATE = 0.5  # share of the shorter function's word triples that the other has too

NUM_NAMES = (1200, 200)  # functions in the training and the validation set of `names`
NUM_WORDS = range(20, 61)  # words and punctuation marks of such a function
VALIDATION_EVERY = 6  # files; one of them is for validation


class Code(NamedTuple):
    """One function and where it is from."""

    text: str
    file: str  # path in the folder of the library
    definition: str  # the class or function at the top level of the file that contains it
    lines: tuple[int, int]  # of the file: the first and the last

    @property
    def package(self) -> str:
        """The package or module at the top of the library."""
        return self.file.partition("/")[0].removesuffix(".py")


def main() -> None:
    """Write the tasks into the folder that the command line names."""
    parser = argparse.ArgumentParser(description="Make two tasks from the source code of Python's standard library.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("data/synthetic"))
    folder = parser.parse_args().folder
    functions = list(library())
    for task, split in (("packages", packages(functions)), ("names", names(functions))):
        (folder / task).mkdir(parents=True, exist_ok=True)
        for name, records in zip(("train", "validation"), split, strict=True):
            file = folder / task / f"{name}.jsonl"
            file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
            print(f"{file}: {len(records):,} records")


def library() -> Iterator[Code]:
    """Yield the functions and methods of the files that `data=stdlib` makes its corpus of, in order."""
    root = Path(sysconfig.get_path("stdlib"))
    for entry in StdlibSource().inputs():
        with tokenize.open(root / entry.name) as file:  # in the encoding that the file declares
            yield from functions_of(entry.name, file.read())


def functions_of(file: str, text: str) -> Iterator[Code]:
    """Yield the functions at the top level of a file, and the methods of the classes there."""
    for definition in ast.parse(text).body:
        inside = definition.body if isinstance(definition, ast.ClassDef) else [definition]
        for node in inside:
            if isinstance(node, Function):
                name = definition.name if isinstance(definition, ast.ClassDef) else node.name
                lines = (node.lineno, node.end_lineno or node.lineno)
                yield Code(_bare(node), file, name, lines)


def _bare(node: Function) -> str:
    """Return the code of a function without decorators, docstring and comments."""
    if ast.get_docstring(node, clean=False) is not None:
        node.body = node.body[1:] or [ast.Pass()]
    node.decorator_list = []
    return ast.unparse(node)


def shuffled(functions: list[Code]) -> list[Code]:
    """Return functions in a random order that is the same everywhere, and the same for each whatever the others are."""
    return sorted(functions, key=lambda code: _hash(code.text))


def _hash(*words: str) -> bytes:
    return hashlib.sha256("\0".join(words).encode()).digest()


def packages(functions: list[Code]) -> Split:
    """Return the records of `packages`: `text`, `label`, and the place in the library."""
    candidates = [code for code in functions if code.package in PACKAGES]
    copies = Counter(code.text for code in candidates)
    named = re.compile("|".join(PACKAGES), re.IGNORECASE)
    by_package = defaultdict(list)
    for code in shuffled(candidates):
        if len(code.text) >= MIN_CHARACTERS and copies[code.text] == 1 and not named.search(code.text):
            by_package[code.package].append(code)

    training: list[Code] = []
    validation: list[Code] = []
    for package in PACKAGES:
        held_out, rest = _split_by_definition(by_package[package])
        triples = [_triples(code) for code in held_out]
        training += [code for code in rest if not _near_duplicate(_triples(code), triples)][:MOST_TRAINING]
        validation += held_out

    def record(code: Code) -> dict[str, Any]:
        return {"text": code.text, "label": code.package, "file": code.file, "lines": code.lines}

    return list(map(record, shuffled(training))), list(map(record, shuffled(validation)))


def _split_by_definition(functions: list[Code]) -> tuple[list[Code], list[Code]]:
    """Draw whole classes and functions for validation until it has enough; return its functions and the others."""
    definitions: dict[tuple[str, str], list[Code]] = defaultdict(list)
    for code in functions:
        definitions[code.file, code.definition].append(code)
    held_out: list[Code] = []
    rest: list[Code] = []
    for place in sorted(definitions, key=lambda place: _hash(*place)):
        chosen = held_out if len(held_out) < NUM_VALIDATION else rest
        chosen += definitions[place][:MOST_OF_A_CLASS]
    return held_out[:NUM_VALIDATION], shuffled(rest)


def _triples(code: Code) -> set[tuple[str, ...]]:
    words = words_of(code.text)
    return set(zip(words, words[1:], words[2:], strict=False))


def _near_duplicate(triples: set[tuple[str, ...]], others: list[set[tuple[str, ...]]]) -> bool:
    return any(len(triples & other) >= NEAR_DUPLICATE * min(len(triples), len(other)) for other in others)


def words_of(text: str) -> list[str]:
    """Return the words and punctuation marks of source code."""
    return re.findall(r"\w+|[^\w\s]", text)


def names(functions: list[Code]) -> Split:
    """Return the records of `names`: `words`, and `tags` in the BIO scheme, of which every name has one of its own."""
    training: list[dict[str, Any]] = []
    validation: list[dict[str, Any]] = []
    for text, code in {code.text: code for code in shuffled(functions)}.items():  # copies count once
        if text.isascii() and len(words_of(text)) in NUM_WORDS:  # the parser's columns count bytes
            chosen = training if _hash(code.file)[0] % VALIDATION_EVERY else validation
            chosen.append({"words": words_of(text), "tags": tags_of(text)})
    return training[: NUM_NAMES[0]], validation[: NUM_NAMES[1]]


def tags_of(text: str) -> list[str]:
    """Return a tag for each of `words_of` a function: what kind of name it is, or O if it is none."""
    kinds = _kinds(ast.parse(text))
    return [
        f"B-{kinds[line, word.start()]}" if (line, word.start()) in kinds else "O"
        for line, words in enumerate(text.split("\n"), 1)
        for word in re.finditer(r"\w+|[^\w\s]", words)
    ]


def _kinds(tree: ast.Module) -> dict[tuple[int, int], str]:
    """Return what each name in a function is, by line, from 1, and column."""
    nodes = list(ast.walk(tree))
    parameters = {node.arg for node in nodes if isinstance(node, ast.arg)}
    assigned = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    kinds = {}
    for node in nodes:
        if isinstance(node, ast.arg):
            kinds[node.lineno, node.col_offset] = "parameter"
        elif isinstance(node, ast.Name):
            kind = "parameter" if node.id in parameters else "local" if node.id in assigned else "global"
            kinds[node.lineno, node.col_offset] = kind
        elif isinstance(node, ast.Attribute):
            assert node.end_lineno is not None and node.end_col_offset is not None, "the parser sets them"
            kinds[node.end_lineno, node.end_col_offset - len(node.attr)] = "attribute"
    return kinds


if __name__ == "__main__":
    main()

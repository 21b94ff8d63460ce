"""A synthetic task of classification: from which package of the standard library is this function?

Holds the choice of functions, and how they are parted into a training and a validation set.

A text is the code of one function as `ast.unparse` writes it: without decorators, docstring and comments, and in one
style of writing. The file's path is no part of it, and functions that contain the name of any of the packages, in
capitals or not, are left out: what remains to go by is what the code does and how its authors call things.

The sets are parted by definitions at the top level of files: all methods of one class are in one of them. Not by files,
of which some packages have but one. Code that stands twice in these packages is left out, and so are functions for
training that are nearly the same as one of the validation set. Still, what is measured is new functions of known
packages, by the same authors. And `data=stdlib` has all of these functions in its corpus, without labels: a model that
was pretrained on it has read them.
"""

from __future__ import annotations

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

from finetune.synthetic.library import Function, SourceFile, drawn

LABELS = ["asyncio", "email", "http", "importlib", "inspect", "logging"]
LABELS += ["mailbox", "multiprocessing", "typing", "unittest", "urllib", "xml"]
NUM_VALIDATION = 25  # functions of each package
MOST_TRAINING = 120  # functions of a package
MOST_OF_ONE = 16  # functions of a class, lest one class be a package
SHORTEST = 80  # characters
ALIKE = 0.5  # share of the shorter function's word triples that another has too, from which they are nearly the same


class Example(NamedTuple):
    """A function and its package."""

    text: str
    label: str
    file: str  # path in the folder of the library
    definition: str  # the class or function at the top level of the file that it is in
    lines: tuple[int, int]  # of the file: the first, and the last

    def record(self) -> dict[str, Any]:
        """Return what is written of it; fine-tuning reads the text and the label."""
        return {"text": self.text, "label": self.label, "file": self.file, "lines": self.lines}


def examples(files: list[SourceFile]) -> tuple[list[Example], list[Example]]:
    """Return the training and the validation set, each in an order at random."""
    training: list[Example] = []
    validation: list[Example] = []
    usable = _usable(files)
    for label in LABELS:
        ours, rest = _parted([example for example in usable if example.label == label])
        kept = [_triples(example) for example in ours]
        training += [example for example in rest if not _resembles(_triples(example), kept)][:MOST_TRAINING]
        validation += ours
    return sorted(training, key=_order), sorted(validation, key=_order)


def _usable(files: list[SourceFile]) -> list[Example]:
    """Return the functions that are long enough, stand in these packages once, and name none of them."""
    found = [example for file in files if _label(file) in LABELS for example in _functions(file)]
    times = Counter(example.text for example in found)
    named = re.compile("|".join(LABELS), re.IGNORECASE)
    return [
        example
        for example in found
        if len(example.text) >= SHORTEST and times[example.text] == 1 and not named.search(example.text)
    ]


def _label(file: SourceFile) -> str:
    return file.name.partition("/")[0].removesuffix(".py")


def _functions(file: SourceFile) -> Iterator[Example]:
    """Yield the functions at the top level of a file, and the methods of the classes there."""
    for definition in file.tree.body:
        if isinstance(definition, ast.ClassDef):
            functions = [node for node in definition.body if isinstance(node, Function)]
        elif isinstance(definition, Function):
            functions = [definition]
        else:
            continue
        for node in functions:
            lines = (node.lineno, node.end_lineno or node.lineno)
            yield Example(_code(node), _label(file), file.name, definition.name, lines)


def _code(node: Function) -> str:
    """Return a function without decorators, docstring and comments."""
    body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
    fields = {name: value for name, value in ast.iter_fields(node) if name not in ("body", "decorator_list")}
    bare = type(node)(**fields, body=body or [ast.Pass()], decorator_list=[], lineno=0, col_offset=0)
    return ast.unparse(bare)


def _parted(examples: list[Example]) -> tuple[list[Example], list[Example]]:
    """Part a package's functions into the validation set's and the rest: classes drawn at random, then functions."""
    definitions: dict[tuple[str, str], list[Example]] = defaultdict(list)
    for example in sorted(examples, key=_order):
        definitions[example.file, example.definition].append(example)
    validation: list[Example] = []
    rest: list[Example] = []
    for names in sorted(definitions, key=lambda names: drawn(*names)):
        chosen = validation if len(validation) < NUM_VALIDATION else rest
        chosen += definitions[names][:MOST_OF_ONE]
    return validation[:NUM_VALIDATION], sorted(rest, key=_order)


def _order(example: Example) -> bytes:
    return drawn(example.text)


def _triples(example: Example) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+|[^\w\s]", example.text)
    return set(zip(words, words[1:], words[2:], strict=False))


def _resembles(triples: set[tuple[str, ...]], others: list[set[tuple[str, ...]]]) -> bool:
    return any(len(triples & other) >= ALIKE * min(len(triples), len(other)) for other in others)

"""A synthetic task of question answering: questions about functions and classes, answered by a part of their source.

Holds the questions; which files they are about is `library`'s to say.

A context is a piece of a file as it stands, with docstrings and comments: several functions or classes in a row. Each
question names one of them, so that the place has to be found, and its answer is what the parser says of that place:

- What is the default of PARAMETER in FUNCTION?
- Which parameter follows PARAMETER in FUNCTION?
- What does FUNCTION return?
- Which class does CLASS inherit from?

The sets are parted by files: no piece of a file in the validation set is learnt from, but its style is that of the
others. Every question has an answer. None as a default is not asked for: it would be right half of the time.
`data=stdlib` has all of these files in its corpus: a model that was pretrained on it has read the contexts, without
questions.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

from finetune.synthetic.library import Function, SourceFile, drawn

KINDS = ["default", "follows", "returns", "inherits"]
ALIKE = "encodings/"  # a hundred files that differ in their tables alone: the sets would share contexts but for names
MOST_TRAINING, MOST_VALIDATION = 800, 100  # questions of each kind
ONE_IN = 6  # files, of which one is for validation
MOST_OF_A_FILE = 40  # questions
CONTEXT = range(250, 701)  # characters
LONGEST_ANSWER = 40  # characters

Definition = Function | ast.ClassDef


class Question(NamedTuple):
    """A question, its context and its answer."""

    id: str
    kind: str  # of `KINDS`
    text: str
    context: str
    answer: str
    start: int  # characters of the context before the answer

    def record(self) -> dict[str, Any]:
        """Return what is written of it, named as `task=qa` expects it."""
        answers = [{"text": self.answer, "answer_start": self.start}]
        return {"id": self.id, "question": self.text, "context": self.context, "answers": answers}


class Asked(NamedTuple):
    """What a question asks, and the part of the file that answers it."""

    kind: str  # of `KINDS`
    text: str
    place: range  # characters of the file


class Places:
    """Where the nodes of a parsed file are, in characters; the parser counts bytes, so this holds for ASCII alone."""

    def __init__(self, text: str) -> None:
        self._starts = list(accumulate((len(line) + 1 for line in text.split("\n")), initial=0))

    def of(self, node: Definition | ast.expr | ast.arg) -> range:
        """Return the characters of a node; decorators are no part of a definition."""
        assert node.end_lineno is not None and node.end_col_offset is not None, "the parser sets them"
        start = self._starts[node.lineno - 1] + node.col_offset
        return range(start, self._starts[node.end_lineno - 1] + node.end_col_offset)

    def name(self, parameter: ast.arg) -> range:
        """Return the characters of a parameter's name, without its annotation."""
        start = self.of(parameter).start
        return range(start, start + len(parameter.arg))


def questions(files: list[SourceFile]) -> tuple[list[Question], list[Question]]:
    """Return the training and the validation set, each in an order at random, with at most so many of each kind."""
    training: list[Question] = []
    validation: list[Question] = []
    for file in files:
        if file.name.startswith(ALIKE):
            continue
        chosen = training if drawn(file.name)[0] % ONE_IN else validation
        chosen += sorted(_of_file(file), key=_order)[:MOST_OF_A_FILE]
    held_out = {question.context for question in validation}
    training = [question for question in training if question.context not in held_out]
    return _levelled(training, MOST_TRAINING), _levelled(validation, MOST_VALIDATION)


def _order(question: Question) -> bytes:
    return drawn(question.id)


def _levelled(found: list[Question], most: int) -> list[Question]:
    seen: Counter[str] = Counter()
    kept: list[Question] = []
    for question in sorted(found, key=_order):
        seen[question.kind] += 1
        if seen[question.kind] <= most:
            kept.append(question)
    return kept


def _of_file(file: SourceFile) -> Iterator[Question]:
    if not file.text.isascii():
        return
    places = Places(file.text)
    for context in _contexts(file.tree, places):
        start, end = places.of(context[0]).start, places.of(context[-1]).stop
        for kind, text, place in _asked(context, places):
            answer = file.text[place.start : place.stop]
            if _is_fit(answer):
                name = f"{file.name}, line {context[0].lineno}: {text}"
                yield Question(name, kind, text, file.text[start:end], answer, place.start - start)


def _contexts(tree: ast.Module, places: Places) -> Iterator[list[Definition]]:
    """Yield rows of two or more definitions of one body that make a context, each as short as it may be."""
    for parent in ast.walk(tree):
        if not isinstance(parent, ast.Module | ast.ClassDef):
            continue
        row: list[Definition] = []
        for node in parent.body:
            if not isinstance(node, Definition):
                row = []
                continue
            row.append(node)
            if places.of(node).stop - places.of(row[0]).start >= CONTEXT.stop:
                row = [node]
            if len(row) > 1 and places.of(node).stop - places.of(row[0]).start >= CONTEXT.start:
                yield row
                row = []


def _asked(context: list[Definition], places: Places) -> Iterator[Asked]:
    """Yield what may be asked of the definitions in a context that have a name of their own there."""
    inside = [node for definition in context for node in ast.walk(definition) if isinstance(node, Definition)]
    times = Counter(node.name for node in inside)
    for node in inside:
        if times[node.name] > 1:
            continue
        if isinstance(node, ast.ClassDef):
            if len(node.bases) == 1:
                yield Asked("inherits", f"Which class does {node.name} inherit from?", places.of(node.bases[0]))
        else:
            yield from _asked_of_function(node, places)


def _asked_of_function(node: Function, places: Places) -> Iterator[Asked]:
    arguments = node.args
    in_row = [*arguments.posonlyargs, *arguments.args]
    defaults = zip(in_row[len(in_row) - len(arguments.defaults) :], arguments.defaults, strict=True)
    for parameter, default in (*defaults, *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)):
        if default is not None and not (isinstance(default, ast.Constant) and default.value is None):
            text = f"What is the default of {parameter.arg} in {node.name}?"
            yield Asked("default", text, places.of(default))
    for parameter, following in pairwise(in_row):
        text = f"Which parameter follows {parameter.arg} in {node.name}?"
        yield Asked("follows", text, places.name(following))
    returned = [inner.value for inner in ast.walk(node) if isinstance(inner, ast.Return)]
    if len(returned) == 1 and returned[0] is not None:
        yield Asked("returns", f"What does {node.name} return?", places.of(returned[0]))


def _is_fit(answer: str) -> bool:
    """Say whether an answer is short, on one line, and more than punctuation, which SQuAD's normalisation drops."""
    return len(answer) <= LONGEST_ANSWER and "\n" not in answer and any(map(str.isalnum, answer))

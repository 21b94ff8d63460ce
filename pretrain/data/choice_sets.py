"""Multiple-choice questions: read from JSON lines, checked, and encoded so that the choices of one can be compared.

Holds what a question is and which of its tokens count; what a model makes of them is measured in `train.choices`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from pretrain.data.sources import compression
from pretrain.data.sources.bad_records import BadRecordError
from pretrain.data.sources.content import unlike_json_lines
from pretrain.data.sources.documents import lines
from pretrain.data.sources.locations import find_files, suffixes
from pretrain.data.sources.readers import JSON_LINES, json_object, open_bytes
from pretrain.errors import ConfigError, DataError

KEYS = ("context", "choices", "answer")  # of a line

log = logging.getLogger(__name__)


class Question(NamedTuple):
    """A context and the texts that may follow it, of which one does."""

    context: str
    choices: list[str]  # with the space between them and the context, if there is one
    answer: int  # number of the right choice, from 0
    place: str  # file and line


class Row(NamedTuple):
    """A context with one of its choices, as the model reads them."""

    ids: np.ndarray  # (N,) int32, of both
    given: int  # ids at the beginning that are not measured, at least 1 and less than N


@dataclass(frozen=True, kw_only=True)
class ChoiceSet:
    """The questions of one file, as token ids: R rows, one a choice, of Q questions."""

    name: str
    rows: list[Row]  # (R,) question after question
    text_bytes: np.ndarray  # (R,) int64, UTF-8 bytes of each choice
    starts: np.ndarray  # (Q+1,) int64, the rows of question q are rows[starts[q]:starts[q+1]]
    answers: np.ndarray  # (Q,) int64, number of the right choice

    @property
    def chance(self) -> float:
        """The accuracy of guesses: the mean of 1 / choices."""
        return float(np.mean(1 / np.diff(self.starts)))

    def accuracy(self, scores: np.ndarray) -> float:
        """Return the share of questions whose right choice has the highest of its scores (R,); the first of equals."""
        best = [int(scores[first:last].argmax()) for first, last in pairwise(self.starts)]
        return float(np.mean(self.answers == best))


def question_files(typed: Sequence[str], key: str) -> dict[str, str]:
    """Return the files that paths, URLs and patterns name, by the name of the set in each: the file's own, bare.

    Raises `ConfigError`, with the setting's `key`, for a name without a file and for two files of one name.
    """
    found: dict[str, str] = {}
    for entry in find_files(typed, key)[0]:
        name = _bare(entry.name)
        if other := found.get(name):
            rule = f"has the same name as {other}, under which its accuracy is logged; rename one of them"
            raise ConfigError(f"{key}={entry.name}: {rule}")
        found[name] = entry.name
    return found


def _bare(file: str) -> str:
    """Return the name of a file without folders and without the suffixes of JSON lines and of compression."""
    name = Path(file.partition("?")[0]).name
    for suffix in reversed(suffixes(file)):
        if suffix.lower() not in (*compression.SUFFIXES, *JSON_LINES):
            break
        name = name.removesuffix(suffix)
    return name


def load_choices(
    typed: Sequence[str], key: str, tokenizer: Tokenizer, prefix: Sequence[int], longest: int
) -> list[ChoiceSet]:
    """Return the sets in the files that `question_files` finds, encoded.

    `prefix` are the ids that begin a document, and a model reads at most `longest` of a row. Raises what
    `question_files` raises, and `DataError` for a line that is no question, or one that cannot be measured.
    """
    files = question_files(typed, key)
    return [encoded(name, list(read_questions(file)), tokenizer, prefix, longest) for name, file in files.items()]


def read_questions(file: str) -> Iterator[Question]:
    """Yield the questions of a file of JSON lines, which may be compressed, at least one. Blank lines are passed over.

    Raises `DataError` for any other line, and for a file that cannot be read or holds no question.
    """
    empty = True
    with open_bytes(file, unlike_json_lines) as stream:
        for number, line in enumerate(lines(stream, file, 0, None), 1):
            if line.data.strip():
                empty = False
                yield _question(line.data, f"{file}:{number}")
    if empty:
        raise DataError(f"{file}: holds no question; write one a line")


def _question(line: bytes, place: str) -> Question:
    try:
        record = json_object(line.decode())
    except UnicodeDecodeError as error:
        raise _refusal(place, f"not valid UTF-8 ({error.reason})") from None
    except BadRecordError as error:
        raise _refusal(place, f"{error.reason} ({error})") from None
    if absent := [key for key in KEYS if key not in record]:
        raise _refusal(place, f"no key {absent[0]!r}, there are {sorted(record)}; a question has {', '.join(KEYS)}")
    context, choices, answer = (record[key] for key in KEYS)
    if not isinstance(choices, list) or len(choices) < 2:
        raise _refusal(place, f"choices={choices!r:.40}, expected a list of at least 2 texts")
    for name, text in (("context", context), *((f"choice {number}", text) for number, text in enumerate(choices))):
        _check_text(place, name, text)
    if empty := [number for number, text in enumerate(choices) if not text]:
        raise _refusal(place, f"choice {empty[0]} is empty")
    if type(answer) is not int or not 0 <= answer < len(choices):
        rule = f"expected the number of the right choice, 0 to {len(choices) - 1}"
        raise _refusal(place, f"answer={answer!r:.40}, {rule}")
    if again := [number for number, text in enumerate(choices) if text == choices[answer] and number != answer]:
        raise _refusal(place, f"choice {again[0]} is the right one, {answer}, again, so that neither can win")
    return Question(context, choices, answer, place)


def _check_text(place: str, name: str, text: Any) -> None:
    if not isinstance(text, str):
        raise _refusal(place, f"{name} is {text!r:.40}, expected a text")
    if text.encode(errors="ignore").decode() != text:
        raise _refusal(place, f"{name} has half a character, a surrogate of UTF-16")


def _refusal(place: str, what: str) -> DataError:
    return DataError(f"{place}: {what}; mend the line, or leave it out")


def encoded(
    name: str, questions: Sequence[Question], tokenizer: Tokenizer, prefix: Sequence[int], longest: int
) -> ChoiceSet:
    """Return questions as ids, after those that begin a document; contexts that are too long lose their beginning.

    A choice is encoded together with its context, because tokens may reach over the place where they meet ("Answer: "
    and "Paris" have " Paris" in common). What the context alone and all of these texts begin with is given; the ids
    that follow are measured. So the choices of a question differ in nothing but what is measured.

    Raises `DataError` for a question without an id that is given, a choice without one that is measured, and choices
    that do not fit into `longest` ids together with any of their context.
    """
    rows: list[Row] = []
    starts = [0]
    num_cut = 0
    for question in questions:
        texts = [question.context, *(question.context + choice for choice in question.choices)]
        ids = [[*prefix, *each.ids] for each in tokenizer.encode_batch(texts, add_special_tokens=False)]
        given = sum(1 for _ in takewhile(_alike, zip(*ids, strict=False)))
        if given == 0:
            raise _refusal(question.place, "nothing of the context's tokens comes before those of the choices")
        if bare := [number for number, each in enumerate(ids[1:]) if len(each) == given]:
            raise _refusal(question.place, f"choice {bare[0]} adds no token to the context")
        most = max(map(len, ids[1:])) - 1  # the last is predicted, not read
        cut = max(most - longest, 0)
        if cut >= given:
            needed = most - given + 1
            rule = f"with one token of the context, its choices take {needed} tokens, and the model reads {longest}"
            raise _refusal(question.place, rule)
        num_cut += cut > 0
        rows += [Row(np.array(each[cut:], dtype=np.int32), given - cut) for each in ids[1:]]
        starts.append(len(rows))
    if num_cut:
        said = "%s: %d of %d contexts are too long and lose their beginning; the model reads %d tokens with a choice"
        log.warning(said, name, num_cut, len(questions), longest)
    return ChoiceSet(
        name=name,
        rows=rows,
        text_bytes=np.array([len(choice.encode()) for each in questions for choice in each.choices]),
        starts=np.array(starts),
        answers=np.array([question.answer for question in questions]),
    )


def _alike(column: tuple[int, ...]) -> bool:
    return len(set(column)) == 1

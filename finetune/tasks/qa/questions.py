"""Questions about texts, their answers and where in the text these are: read and checked.

SQuAD's JSON is read here; JSON lines, Parquet and the hub by `finetune.data`. Tokens are made in `windows`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from finetune.data.records import DataSet, Record, is_text, name_of, read_records
from pretrain.data.sources.bad_records import BadRecordError, BadRecords
from pretrain.data.sources.locations import is_file
from pretrain.data.sources.readers import file_format, open_bytes
from pretrain.errors import DataError

ROLES = ("id", "question", "context", "answers", "answer_start")
LABELS = ("answers", "answer_start")  # the roles that predictions do without


class Answer(NamedTuple):
    """A part of a context."""

    text: str  # without white space at its ends
    start: int  # characters of the context before it

    @property
    def end(self) -> int:
        """Characters of the context before its end."""
        return self.start + len(self.text)


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question about a context."""

    id: str
    text: str
    context: str
    answers: tuple[Answer, ...] | None  # each is right; (): the context has none; None: not known


def read_questions(
    source: DataSet, columns: Mapping[str, str], *, labelled: bool, unanswerable: bool, max_faults: float
) -> list[Question]:
    """Read the questions of a file, or of a data set on the hub; with their answers if they are `labelled`.

    A `.json` file of one object, compressed or not, is SQuAD's, 1.1 or 2.0; all else is read as records, with `columns`
    named for each of `ROLES`. Answers are a list of {text, answer_start}, lists of both as {text: [...], answer_start:
    [...]}, or one text whose start is in another column; no text means no answer, which is an error unless questions
    may be `unanswerable`.

    Bad records are counted and left out. Raises `DataError` if their share is above `max_faults`, or for a file that
    cannot be read, and `ConfigError` for a file or column that is not there.
    """
    bad_records = BadRecords(name_of(source), allowed=max_faults)
    questions: dict[str, Question] = {}
    wanted = {role: name for role, name in columns.items() if name and (labelled or role not in LABELS)}
    for record in _records(source, wanted, bad_records):
        with bad_records.counted(record.place):
            question = _question(record.values, labelled=labelled, unanswerable=unanswerable)
            if question.id in questions:
                raise BadRecordError("duplicate id", repr(question.id))
            questions[question.id] = question
    bad_records.settle(len(questions))
    return list(questions.values())


def _records(source: DataSet, columns: Mapping[str, str], bad_records: BadRecords) -> Iterator[Record]:
    if not isinstance(source, str):
        numbered = [_with_id(one, str(number), columns) for number, one in enumerate(source)]
        return read_records(numbered, columns, bad_records)
    squad = _squad(source)
    return read_records(source, columns, bad_records) if squad is None else _squad_records(source, squad)


def _with_id(given: Any, name: str, columns: Mapping[str, str]) -> Any:
    """Return a question in memory, a dictionary or the values of the columns after the id, with an id."""
    if isinstance(given, Mapping):
        return {columns["id"]: name, **given}
    return (name, *given) if isinstance(given, tuple) else (name, given)


def _squad(source: str) -> dict[str, Any] | None:
    """Return the contents of a JSON file in SQuAD's format, which is one object, or None for any other source."""
    if file_format(source) != ".json" or not is_file(source):
        return None
    with open_bytes(source) as stream:
        try:
            found = json.load(stream)
        except (ValueError, RecursionError):  # lines of JSON, or no JSON, for which `read_records` names the line
            return None
    return found if isinstance(found, dict) and "data" in found else None


def _squad_records(file: str, squad: dict[str, Any]) -> Iterator[Record]:
    for a, article in enumerate(_list(squad, "data", file), 1):
        place = f"{file}: article {a}"
        for p, paragraph in enumerate(_list(article, "paragraphs", place), 1):
            inner = f"{place}, paragraph {p}"
            for q, fields in enumerate(_list(paragraph, "qas", inner), 1):
                if not isinstance(fields, dict):
                    raise DataError(f"{inner}, question {q}: {fields!r:.40}, expected an object; mend the file")
                yield Record(paragraph | fields, f"{inner}, question {q}")


def _list(fields: Any, key: str, place: str) -> list[Any]:
    value = fields.get(key) if isinstance(fields, dict) else None
    if not isinstance(value, list):
        rule = f'expected a list under "{key}", as SQuAD has it; mend the file, or give it as lines of JSON (.jsonl)'
        raise DataError(f"{place}: {value!r:.40}: {rule}")
    return value


def _question(values: dict[str, Any], *, labelled: bool, unanswerable: bool) -> Question:
    name = values.get("id")
    context = _text(values, "context")
    question = Question(
        id=str(name) if isinstance(name, int) else _text(values, "id"),
        text=_text(values, "question"),
        context=context,
        answers=_answers(values, context) if labelled else None,
    )
    if question.answers == () and not unanswerable:
        detail = f"question {question.id!r}; task.unanswerable=true if that is meant"
        raise BadRecordError("no answer", detail)
    return question


def _text(values: dict[str, Any], key: str) -> str:
    if key not in values:
        raise BadRecordError("missing field", f"no {key!r}, there are {sorted(values)}")
    value = values[key]
    if not isinstance(value, str):
        raise BadRecordError("no text", f"{key!r} is {value!a:.40}")
    if not value.strip():
        raise BadRecordError(f"empty {key}", f"{value!r:.40}")
    if not is_text(value):
        raise BadRecordError("no text", f"{key!r} is {value!a:.40}, half a surrogate pair")
    return value


def _answers(values: dict[str, Any], context: str) -> tuple[Answer, ...]:
    impossible = values.get("is_impossible")
    if str(impossible).lower() not in {"true", "false", "none", "0", "1"}:
        raise BadRecordError("bad is_impossible", f"{impossible!a:.40}, expected true or false")
    if str(impossible).lower() in {"true", "1"}:
        return ()
    if "answers" not in values:
        raise BadRecordError("missing field", f"no 'answers', there are {sorted(values)}")
    found = values["answers"]
    if isinstance(found, str):
        found = [{"text": found, "answer_start": values.get("answer_start")}] if found else []
    elif isinstance(found, dict):
        texts, starts = found.get("text"), found.get("answer_start")
        if not (isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts)):
            raise BadRecordError("bad answers", f"{found!a:.80}, expected as many texts as starts")
        found = [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]
    if not isinstance(found, list | None):
        raise BadRecordError("bad answers", f"{found!a:.80}, expected texts and where they start")
    return tuple(_answer(one, context) for one in found or [])


def _answer(found: Any, context: str) -> Answer:
    text, start = (found.get("text"), found.get("answer_start")) if isinstance(found, dict) else (None, None)
    if isinstance(start, float) and start.is_integer():  # as data frames store it where others are missing
        start = int(start)
    if not isinstance(text, str) or not isinstance(start, int) or isinstance(start, bool):
        raise BadRecordError("bad answers", f"{found!a:.80}, expected a text and the character where it starts")
    if not text.strip():
        raise BadRecordError("empty answer", f"{text!r:.40}")
    if start < 0 or context[start : start + len(text)] != text:
        elsewhere = context.find(text)
        what = f"it is at {elsewhere}" if elsewhere >= 0 else "nor is it anywhere in it"
        raise BadRecordError("an answer is not where it says", f"{text!r:.80} not at {start} of its context, {what}")
    return Answer(text.strip(), start + len(text) - len(text.lstrip()))

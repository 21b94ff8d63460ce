"""Questions are read from every format alike, and what is wrong with them is named, counted and refused."""

import gzip
import json
import logging

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune.tasks.qa.questions import ROLES, Answer, Question, read_questions
from pretrain.errors import ConfigError, DataError

COLUMNS = {role: role for role in ROLES[:-1]} | {"answer_start": ""}
CONTEXT = "Zürich lies on a lake. 🙂 The lake is deep."
GOOD = {"id": "a", "question": "Where?", "context": CONTEXT, "answers": [{"text": "on a lake", "answer_start": 12}]}
NONE = {"id": "b", "question": "Why?", "context": CONTEXT, "answers": []}
READ = [
    Question(id="a", text="Where?", context=CONTEXT, answers=(Answer("on a lake", 12),)),
    Question(id="b", text="Why?", context=CONTEXT, answers=()),
]


def read(path, columns=COLUMNS, *, labelled=True, unanswerable=True, max_faults=0.0) -> list[Question]:
    return read_questions(str(path), columns, labelled=labelled, unanswerable=unanswerable, max_faults=max_faults)


def squad(path, *records, **changes):
    """Write records in SQuAD's manner, one paragraph each."""
    paragraphs = [
        {
            "context": record["context"],
            "qas": [{key: value for key, value in record.items() if key != "context"}],
        }
        for record in records
    ]
    text = json.dumps({"version": "v2.0", "data": [{"title": "t", "paragraphs": paragraphs}]} | changes)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def lines(path, *records):
    path.write_text("\n".join(json.dumps(record) for record in records))
    return path


@pytest.mark.parametrize("name", ["dev.json", "dev.json.gz"])
def test_squad(tmp_path, name):
    plausible = NONE | {"answers": [{"text": "deep", "answer_start": 37}], "is_impossible": True}
    assert read(squad(tmp_path / name, GOOD, plausible)) == READ
    assert read(squad(tmp_path / name, GOOD, NONE)) == READ
    said = [GOOD | {"is_impossible": "false"}, plausible | {"is_impossible": "True"}]
    assert read(squad(tmp_path / name, *said)) == READ
    with pytest.raises(DataError, match=r"bad is_impossible"):
        read(squad(tmp_path / name, GOOD | {"is_impossible": "perhaps"}))


@pytest.mark.parametrize("name", ["dev.jsonl", "dev.json"])
def test_json_lines_with_answers_of_every_form(tmp_path, name):
    joined = GOOD | {"answers": {"text": ["on a lake"], "answer_start": [12]}}
    assert read(lines(tmp_path / name, GOOD, NONE)) == READ
    assert read(lines(tmp_path / name, joined, NONE | {"answers": {"text": [], "answer_start": []}})) == READ
    assert read(lines(tmp_path / name, GOOD, NONE | {"answers": None})) == READ
    flat = [GOOD | {"answers": "on a lake", "first": 12}, NONE | {"answers": "", "first": None}]
    assert read(lines(tmp_path / name, *flat), COLUMNS | {"answer_start": "first"}) == READ
    floats = GOOD | {"answers": [{"text": "on a lake", "answer_start": 12.0}]}
    assert read(lines(tmp_path / name, floats, NONE)) == READ


def test_parquet_with_columns_of_other_names_and_numbers_for_ids(tmp_path):
    table = {
        "key": [1, 2],
        "question": ["Where?", "Why?"],
        "context": [CONTEXT] * 2,
        "answers": [{"text": ["on a lake"], "answer_start": [12]}, {"text": [], "answer_start": []}],
    }
    pq.write_table(pa.table(table), tmp_path / "dev.parquet")
    found = read(tmp_path / "dev.parquet", COLUMNS | {"id": "key"})
    assert [question.id for question in found] == ["1", "2"]
    assert [question.answers for question in found] == [question.answers for question in READ]


def test_questions_without_answers_are_read_where_none_are_wanted(tmp_path):
    asked = {key: value for key, value in GOOD.items() if key != "answers"}
    for path in (lines(tmp_path / "ask.jsonl", asked), squad(tmp_path / "ask.json", asked)):
        [question] = read(path, labelled=False, unanswerable=False)
        assert question.answers is None and question.text == "Where?"
    with pytest.raises(ConfigError, match=r"task.columns.answers=answers"):
        read(lines(tmp_path / "ask.jsonl", asked))
    with pytest.raises(DataError, match="missing field: 1"):
        read(squad(tmp_path / "ask.json", asked))


def test_white_space_around_an_answer_is_no_part_of_it(tmp_path):
    wide = GOOD | {"answers": [{"text": " on a lake", "answer_start": 11}, {"text": "lake. ", "answer_start": 17}]}
    [question] = read(squad(tmp_path / "x.json", wide))
    assert question.answers == (Answer("on a lake", 12), Answer("lake.", 17))


FAULTS = {
    "missing field": {"question": ...},
    "empty question": {"question": " \n"},
    "empty context": {"context": ""},
    "no text": {"question": 7},
    "no text ": {"question": "half \ud83d"},
    "duplicate id": {"id": "a"},
    "bad answers": {"answers": [{"text": "on a lake"}]},
    "bad answers ": {"answers": {"text": ["on a lake"], "answer_start": []}},
    "bad answers  ": {"answers": [{"text": "on a lake", "answer_start": True}]},
    "bad answers   ": {"answers": 3},
    "empty answer": {"answers": [{"text": " ", "answer_start": 6}]},
    "an answer is not where it says": {"answers": [{"text": "on a lake", "answer_start": 13}]},
    "an answer is not where it says ": {"answers": [{"text": "on a sea", "answer_start": 12}]},
    "an answer is not where it says  ": {"answers": [{"text": "deep", "answer_start": -5}]},
}


@pytest.mark.parametrize("reason", FAULTS)
def test_a_bad_question_is_named_with_its_place_and_refused_or_left_out(tmp_path, reason, caplog):
    changed = {key: value for key, value in (GOOD | {"id": "c"} | FAULTS[reason]).items() if value is not ...}
    path = squad(tmp_path / "x.json", GOOD, changed)
    with pytest.raises(DataError) as refused:
        read(path)
    for said in (f"{reason.strip()}: 1", f"{path}: article 1, paragraph 2, question 1", "task.max_faults", "1 of 2"):
        assert said in str(refused.value)
    with caplog.at_level(logging.WARNING):
        assert read(path, max_faults=0.5) == READ[:1]
    assert f"{reason.strip()}: 1" in caplog.text


def test_an_answer_elsewhere_says_where(tmp_path):
    moved = GOOD | {"answers": [{"text": "lake", "answer_start": 30}]}
    with pytest.raises(DataError, match="'lake' not at 30 of its context, it is at 17"):
        read(lines(tmp_path / "x.jsonl", moved))


def test_no_answer_is_a_fault_unless_it_may_be(tmp_path):
    with pytest.raises(DataError, match=r"no answer: 1 .*x.json: article 1, paragraph 2.*task.unanswerable=true"):
        read(squad(tmp_path / "x.json", GOOD, NONE), unanswerable=False)


def test_records_that_are_no_json_are_counted_too(tmp_path):
    path = lines(tmp_path / "x.jsonl", GOOD, NONE)
    path.write_text(path.read_text() + "\n{\n")
    with pytest.raises(DataError, match="1 of 3 records are bad"):
        read(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {}}, r'x.json: {}: expected a list under "data"'),
        ({"data": [{"title": "t"}]}, r'article 1: None: expected a list under "paragraphs"'),
        ({"data": [{"paragraphs": [{"qas": 3}]}]}, r'article 1, paragraph 1: 3: expected a list under "qas"'),
        ({"data": [{"paragraphs": [{"context": CONTEXT, "qas": ["who"]}]}]}, r"question 1: 'who', expected an object"),
        ({"data": []}, r"there is no record"),
    ],
)
def test_another_shape_of_json_is_refused(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        read(squad(tmp_path / "x.json", GOOD, **changes))


def test_files_that_are_not_there_or_torn(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        read(tmp_path / "absent.json")
    path = squad(tmp_path / "x.json.gz", GOOD)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"x.json.gz: cannot be read"):
        read(path)

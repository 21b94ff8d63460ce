"""Records in memory go the way of those in files: the same predictions and metrics, and the same refusals."""

import json

import pytest
from finetuned_runs import WORDS, texts, trained

from finetune.trained import load
from pretrain.errors import ConfigError, DataError


def without_places(predictions):
    return [{key: value for key, value in one.items() if key != "place"} for one in predictions]


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    """A classifier of texts, its file, and what it predicts of that file."""
    records = [{"text": text, "label": word} for text, word in texts(23)]
    run, data = trained(tmp_path_factory.mktemp("labels"), "bert", "classification", records)
    model = load(run)
    return model, data, model.predict(data)


def test_texts_and_dictionaries_are_predicted_as_in_a_file(labels):
    model, _, expected = labels
    plain = [text for text, _ in texts(23)]
    for given in (plain, tuple(plain), [(text,) for text in plain], [{"text": text, "more": 1} for text in plain]):
        found = model.predict(given)
        assert without_places(found) == without_places(expected)
        assert [one["place"] for one in found] == [f"record {number}" for number in range(23)]
    assert not model.module.training


def test_labelled_records_are_measured_as_in_a_file(labels):
    model, data, _ = labels
    measured = model.evaluate(str(data))
    assert measured["accuracy"] > 0
    assert model.evaluate(texts(23)) == measured
    assert model.evaluate([json.loads(line) for line in data.read_text().splitlines()]) == measured


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ("a text alone", ConfigError, "the data set=a text alone: no such file; a text stands in a list"),
        ({"text": "one"}, ConfigError, "a dict: give a file's name or a list of records; of a data frame"),
        ([{"body": "the"}, {"body": "time"}], ConfigError, "task.columns.text=text: the list given has no such column"),
        ([{"text": "the"}, {}], DataError, r"the list given: 1 of 2 records are bad.*\(record 1: no 'text'"),
        (["the", "", 7], DataError, r"2 of 3 records.*no text: 1 \(record 1: ''\); text is no string: 1 \(record 2: 7"),
        ([("the", "time")], DataError, r"too many values: 1 \(record 0: 2, expected text\)"),
        (["the \ud800"], DataError, "not UTF-8: 1 .record 0: column 'text'"),
        ([], DataError, "the list given: there is no record in it"),
    ],
)
def test_what_is_refused(labels, given, kind, message):
    with pytest.raises(kind, match=message):
        labels[0].predict(given)


def test_pairs(tmp_path):
    pairs = [(text, other) for (text, _), (other, _) in zip(texts(20), texts(25)[5:], strict=True)]
    records = [{"text": text, "other": other, "score": len(text) / 10} for text, other in pairs]
    columns = ["task.columns.text_pair=other", "task.columns.label=score", "task.problem=regression"]
    run, data = trained(tmp_path, "bert", "classification", records, *columns)
    model = load(run)
    expected = without_places(model.predict(data))
    assert without_places(model.predict(pairs)) == without_places(model.predict(records)) == expected
    assert model.evaluate([(*pair, len(pair[0]) / 10) for pair in pairs]) == model.evaluate(data)
    with pytest.raises(ConfigError, match=r"task.columns.text_pair=other: the list given has no such column"):
        model.predict(["the time"])


def test_questions(tmp_path):
    contexts = [" ".join(text for text, _ in texts(place % 4 + 2)) for place in range(18)]
    answers = {"text": ["the"], "answer_start": [0]}
    records = [{"question": "the year", "context": context, "answers": answers} for context in contexts]
    numbered = [{"id": str(number), **record} for number, record in enumerate(records)]
    windows = ["task.stride=4", "task.max_question_tokens=6"]
    run, data = trained(tmp_path, "bert", "qa", numbered, *windows)
    model = load(run)
    expected = model.predict(data)
    assert model.predict(records) == model.predict([("the year", context) for context in contexts]) == expected
    assert [one["id"] for one in model.predict([{**records[0], "id": "mine"}, records[1]])] == ["mine", "1"]
    assert model.evaluate(records) == model.evaluate(data)
    with pytest.raises(ConfigError, match=r"task.columns.context=context: the list given has no such column"):
        model.predict(["the year"])


def test_sentences(tmp_path):
    rows = [text.split() for text, _ in texts(21)]
    records = [{"words": row, "tags": ["B-X" if word in WORDS[:3] else "O" for word in row]} for row in rows]
    run, data = trained(tmp_path, "bert", "tokens", records)
    model = load(run)
    expected = without_places(model.predict(data))
    for given in (rows, [" ".join(row) for row in rows], [{"words": row} for row in rows]):
        assert without_places(model.predict(given)) == expected
    tagged = [(record["words"], record["tags"]) for record in records]
    assert model.evaluate(tagged) == model.evaluate(records) == model.evaluate(data)

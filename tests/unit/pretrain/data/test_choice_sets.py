"""Multiple-choice questions: which lines are none, which tokens of a choice are measured, what is too long."""

import gzip
import json
import logging
import math

import numpy as np
import pytest
from vocabularies import byte_level, unigram, word_piece

from pretrain.data.choice_sets import ChoiceSet, Question, encoded, load_choices, question_files, read_questions
from pretrain.errors import ConfigError, DataError

TEXTS = ["Question: the capital of France? Answer: Paris or Rome", "a cat sat and cats sit", "0123456789"] * 30
GOOD = {"context": "the cat", "choices": [" sat", " sits down"], "answer": 1}


def write(folder, *lines, name="set.jsonl"):
    (folder / name).write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return str(folder / name)


def test_files_are_sets_by_their_bare_names(tmp_path):
    files = [write(tmp_path, GOOD, name=name) for name in ("b.v2.jsonl", "a.json")]
    packed = tmp_path / "c.jsonl.gz"
    packed.write_bytes(gzip.compress(json.dumps(GOOD).encode()))
    (tmp_path / "other").mkdir()
    assert question_files([*files, str(packed)], "k") == {"a": files[1], "b.v2": files[0], "c": str(packed)}
    assert question_files([f"{tmp_path}/*.jsonl"], "k") == {"b.v2": files[0]}
    [question] = read_questions(str(packed))
    assert question == Question("the cat", [" sat", " sits down"], 1, f"{packed}:1")
    write(tmp_path / "other", GOOD, name="a.jsonl")
    with pytest.raises(ConfigError, match=r"eval.choices=.*: has the same name as .*rename one of them"):
        question_files([files[1], f"{tmp_path}/other/a.jsonl"], "eval.choices")
    with pytest.raises(ConfigError, match=r"eval.choices: .*nowhere.jsonl matches no file"):
        question_files([str(tmp_path / "nowhere.jsonl")], "eval.choices")


@pytest.mark.parametrize(
    ("line", "refusal"),
    [
        ("{", r"set.jsonl:2: not JSON"),
        ([1], "set.jsonl:2: no JSON object"),
        ({"endings": [], "context": "a"}, r"no key 'choices', there are \['context', 'endings'\]; a question has"),
        (GOOD | {"answer": 2}, "set.jsonl:2: answer=2, expected the number of the right choice, 0 to 1; mend the line"),
        (GOOD | {"answer": -1}, "answer=-1"),
        (GOOD | {"answer": True}, "answer=True"),
        (GOOD | {"answer": "1"}, "answer='1'"),
        (GOOD | {"choices": ["a"]}, r"choices=\['a'\], expected a list of at least 2 texts"),
        (GOOD | {"choices": "ab"}, "choices='ab', expected a list"),
        (GOOD | {"choices": [" a", ""]}, "choice 1 is empty"),
        (GOOD | {"choices": [" a", " b", " a"], "answer": 2}, "choice 0 is the right one, 2, again"),
        (GOOD | {"choices": [" a", 3]}, "choice 1 is 3, expected a text"),
        (GOOD | {"context": None}, "context is None, expected a text"),
        (GOOD | {"context": "\ud800"}, "context has half a character"),
    ],
)
def test_what_is_no_question_is_refused_by_its_line(tmp_path, line, refusal):
    file = write(tmp_path, GOOD, line)
    with pytest.raises(DataError, match=refusal):
        list(read_questions(file))


def test_blank_lines_are_no_questions_and_a_file_of_them_is_refused(tmp_path):
    assert len(list(read_questions(write(tmp_path, "", GOOD, " ", GOOD)))) == 2
    with pytest.raises(DataError, match="holds no question"):
        list(read_questions(write(tmp_path, "", "")))
    (tmp_path / "latin.jsonl").write_bytes(b'{"context": "' + b"a" * 99 + b'\xff", "choices": [], "answer": 0}\n')
    with pytest.raises(DataError, match=r"latin.jsonl:1: not valid UTF-8"):
        list(read_questions(str(tmp_path / "latin.jsonl")))


def ask(context, *choices):
    return Question(context, list(choices), 0, "set.jsonl:4")


def shown(tokenizer, each):
    """Return what is given of each row, and what is measured, as the tokenizer reads it."""
    return [tuple(tokenizer.decode(part.tolist()) for part in np.split(row.ids, [row.given])) for row in each.rows]


def test_tokens_over_the_place_where_context_and_choice_meet_are_measured_whole():
    tokenizer = byte_level(TEXTS)
    questions = [ask("Answer: ", "Paris", "Rome"), ask("Answer:", " Paris", " Rome"), ask("a cat", "s sit", " sat")]
    found = encoded("set", questions, tokenizer, [], 64)
    apart, after, word = shown(tokenizer, found)[::2]
    assert apart == after == ("Answer:", " Paris")
    assert word == ("a", " cats sit") and shown(tokenizer, found)[5] == ("a", " cat sat")
    assert found.starts.tolist() == [0, 2, 4, 6] and found.text_bytes.tolist() == [5, 4, 6, 5, 5, 4]


@pytest.mark.parametrize("vocabulary", [byte_level, word_piece, unigram])
def test_context_and_choice_are_tokenized_as_one_text(vocabulary):
    tokenizer = vocabulary(TEXTS)
    found = encoded("set", [ask("Question: the capital", " of France?", " of Rome", "s sit")], tokenizer, [3], 64)
    for row, choice in zip(found.rows, (" of France?", " of Rome", "s sit"), strict=True):
        whole = tokenizer.encode(f"Question: the capital{choice}", add_special_tokens=False).ids
        assert row.ids.tolist() == [3, *whole] and 1 < row.given < len(row.ids)
        assert row.ids[: row.given].tolist() == found.rows[0].ids[: row.given].tolist()


def test_a_context_that_is_too_long_loses_its_beginning_for_all_choices_alike(caplog):
    tokenizer = byte_level(["x"])  # a token a byte
    with caplog.at_level(logging.WARNING):
        found = encoded("set", [ask("012345", "ab", "abcd"), ask("0", "a", "b")], tokenizer, [], 6)
    assert shown(tokenizer, found) == [("345", "ab"), ("345", "abcd"), ("0", "a"), ("0", "b")]
    assert caplog.messages == [
        "set: 1 of 2 contexts are too long and lose their beginning; the model reads 6 tokens with a choice"
    ]
    with pytest.raises(DataError, match=r"set.jsonl:4: with one token of the context, its choices take 5 tokens, and"):
        encoded("set", [ask("012345", "ab", "abcde")], tokenizer, [], 4)


def test_an_empty_context_needs_a_token_that_begins_documents():
    tokenizer = byte_level(TEXTS)
    found = encoded("set", [ask("", "Paris", "Rome")], tokenizer, [7], 64)
    assert [row.given for row in found.rows] == [1, 1]
    with pytest.raises(DataError, match=r"set.jsonl:4: nothing of the context's tokens comes before"):
        encoded("set", [ask("", "Paris", "Rome")], tokenizer, [], 64)


def test_a_choice_without_a_token_of_its_own_is_refused():
    with pytest.raises(DataError, match=r"set.jsonl:4: choice 1 adds no token to the context"):
        encoded("set", [ask("a cat", " sat", " ")], word_piece(TEXTS), [], 64)


def test_chance_and_accuracy_by_hand(tmp_path):
    file = write(tmp_path, GOOD, {"context": "a", "choices": [" b", " c", " d", " e"], "answer": 2})
    [found] = load_choices([file], "k", byte_level(TEXTS), [], 64)
    assert found.name == "set" and math.isclose(found.chance, (1 / 2 + 1 / 4) / 2)
    assert isinstance(found, ChoiceSet) and found.answers.tolist() == [1, 2]
    scores = np.array([-4.0, -5.0, -3.0, -3.0, -3.0, -3.5])  # of " sat", " sits down", then of four
    assert found.accuracy(scores) == 0.0, "the shorter is likelier, and of equals the first counts"
    assert found.accuracy(scores / found.text_bytes) == 0.5, "-4/4 is less than -5/10"

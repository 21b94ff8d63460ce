"""Question answering as a task: training targets, metrics, predictions, and what is refused."""

import json
import logging
import os
import random
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from finetune.answering.base import Encoded
from finetune.model.losses import AnswerSpans
from finetune.tasks.qa.questions import Answer, Question
from finetune.tasks.qa.task import QaConfig, QaMetric
from finetune.tasks.squad import squad_metrics
from pretrain.errors import ConfigError, DataError
from pretrain.registry import choices
from pretrain.tokenizer.base import load_tokenizer

CONTEXT = "the cat sat on the mat in the old hall"
NAMES = ["start", "end"]


def words() -> Tokenizer:
    ids = {word: place for place, word in enumerate(["[UNK]", *dict.fromkeys(CONTEXT.split())])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def question(name: str, *answers: str) -> Question:
    held = tuple(Answer(text, CONTEXT.index(text)) for text in answers)
    return Question(id=name, text="who", context=CONTEXT, answers=held)


def task(**settings) -> QaConfig:
    return QaConfig(**{"max_tokens": 20, "stride": 2, "max_question_tokens": 4} | settings)


def owners(encoded: Encoded) -> np.ndarray:
    """The question of each window."""
    return np.repeat(np.arange(len(encoded.records)), [len(one.starts) for one in encoded.records])


def logits_of(encoded: Encoded, spans: dict[int, tuple[int, int, float]], no_answer: float = 0.0) -> list[np.ndarray]:
    """Logits that score one span of a record's context tokens (first, last, score) in each of its windows."""
    found = []
    for sequence, record in enumerate(owners(encoded)):
        rows = np.zeros((encoded.examples.lengths[sequence], 2), np.float32)
        rows[0] = no_answer / 2
        first, last, score = spans[int(record)]
        rows[1 + first, 0] += score / 2
        rows[1 + last, 1] += score / 2
        found.append(rows)
    return found


def test_it_is_a_choice_with_two_outputs():
    assert choices()[QaConfig] == ("task", "qa")
    assert task().names([]) == NAMES
    assert task().metric == "f1" and task(metric=QaMetric.exact_match).metric == "exact_match"


def test_windows_become_examples_with_owners_and_labels():
    cfg = task(max_tokens=7)
    encoded = cfg.encode([question("a", "the mat", "cat"), question("b")], words(), NAMES)
    assert owners(encoded).tolist() == [0, 0, 1, 1]
    assert encoded.examples.labels is not None
    assert encoded.examples.labels.tolist() == [[5, 6], [1, 2], [0, 0], [0, 0]]
    assert cfg.loss(encoded, NAMES) == AnswerSpans()
    batch = encoded.examples.batch(np.array([1, 0]))
    rows = torch.zeros(14, 2)
    for place, output in ((1, 0), (2, 1), (7 + 5, 0), (7 + 6, 1)):  # where the answer is
        rows[place, output] = 50
    total, correct = AnswerSpans()(rows, batch)
    assert total < 1e-6 and correct == 2


def test_answers_are_measured_with_the_official_metrics():
    cfg = task()
    encoded = cfg.encode([question("a", "the mat", "mat"), question("b", "old hall")], words(), NAMES)
    logits = logits_of(encoded, {0: (5, 5, 9), 1: (7, 9, 9)})
    assert cfg.measure(encoded, logits, NAMES) == squad_metrics(["mat", "the old hall"], [["the mat"], ["old hall"]])
    logits = logits_of(encoded, {0: (5, 5, 9), 1: (9, 9, 9)}, no_answer=99)  # which 1.1 does not know
    assert cfg.measure(encoded, logits, NAMES) == pytest.approx({"exact_match": 0.5, "f1": (1 + 2 / 3) / 2})


def test_the_threshold_is_the_best_or_the_configured_one():
    cfg = task(unanswerable=True)
    encoded = cfg.encode([question("a", "mat"), question("b", "hall"), question("c"), question("d")], words(), NAMES)
    logits = logits_of(encoded, {0: (5, 5, 9), 1: (9, 9, 6), 2: (1, 1, 4), 3: (2, 2, 2)}, no_answer=7)
    assert cfg.measure(encoded, logits, NAMES) == {
        "exact_match": 1.0,
        "f1": 1.0,
        "has_answer_exact_match": 1.0,
        "has_answer_f1": 1.0,
        "no_answer_exact_match": 1.0,
        "no_answer_f1": 1.0,
        "no_answer_threshold": 2.0,  # between 7 - 6, so that b is answered, and 7 - 4, so that c is not
    }
    strict = replace(cfg, no_answer_threshold=0.0).measure(encoded, logits, NAMES)
    assert (strict["f1"], strict["has_answer_f1"], strict["no_answer_threshold"]) == (0.75, 0.5, 0.0)
    loose = replace(cfg, no_answer_threshold=5.0).measure(encoded, logits, NAMES)
    assert (loose["f1"], loose["no_answer_f1"]) == (0.5, 0.0)


def test_a_threshold_is_found_for_the_metric_that_chooses():
    encoded = task(unanswerable=True).encode([question("a", "the old hall"), question("b")], words(), NAMES)
    logits = logits_of(encoded, {0: (9, 9, 4), 1: (1, 1, 6)}, no_answer=5)  # half right; wrong, and surer
    by_f1 = task(unanswerable=True).measure(encoded, logits, NAMES)
    by_match = task(unanswerable=True, metric=QaMetric.exact_match).measure(encoded, logits, NAMES)
    assert by_f1["no_answer_threshold"] == by_match["no_answer_threshold"] == -sys.float_info.max
    logits = logits_of(encoded, {0: (9, 9, 7), 1: (1, 1, 6)}, no_answer=5)
    assert task(unanswerable=True).measure(encoded, logits, NAMES)["no_answer_threshold"] == -1.5
    by_match = task(unanswerable=True, metric=QaMetric.exact_match).measure(encoded, logits, NAMES)
    assert by_match["no_answer_threshold"] == -sys.float_info.max
    json.dumps(by_match, allow_nan=False)


def test_predictions_are_spans_with_scores_and_probabilities():
    cfg = task(max_tokens=7, n_best=3, max_answer_tokens=4)
    encoded = cfg.encode([question("a", "mat"), replace(question("b"), answers=())], words(), NAMES)
    logits = logits_of(encoded, {0: (1, 2, 9), 1: (1, 1, 8)})
    first, second = cfg.predict(encoded, logits, NAMES)
    assert list(first) == ["id", "answer", "start", "end", "score", "probability", "n_best"]
    assert (first["id"], first["score"], second["id"]) == ("a", 9.0, "b")
    assert CONTEXT[first["start"] : first["end"]] == first["answer"] == "cat sat"
    scores = np.array([answer["score"] for answer in first["n_best"]])
    shares = np.exp(scores) / np.exp(scores).sum()
    assert [answer["probability"] for answer in first["n_best"]] == pytest.approx(shares.tolist())
    assert len(first["n_best"]) == 3 and sorted(scores, reverse=True) == scores.tolist()
    assert first["n_best"][0]["probability"] == first["probability"]
    json.dumps([first, second], allow_nan=False)


@pytest.mark.parametrize(("threshold", "answer"), [(None, ""), (0.9, ""), (1.0, "mat")])
def test_no_answer_is_predicted_above_the_threshold(threshold, answer):
    cfg = task(unanswerable=True, no_answer_threshold=threshold, n_best=2)
    encoded = cfg.encode([question("a", "mat")], words(), NAMES)
    [found] = cfg.predict(encoded, logits_of(encoded, {0: (5, 5, 6)}, no_answer=7), NAMES)
    assert found["answer"] == answer and found["no_answer_score"] == 1.0
    assert [one["score"] for one in found["n_best"]] == [7.0, 6.0, 3.0]
    assert found["n_best"][0] == {
        "answer": "",
        "start": None,
        "end": None,
        "score": 7.0,
        "probability": pytest.approx(1 / (1 + np.exp(-1) + np.exp(-4))),
    }
    assert (found["start"] is None) == (answer == "")


def test_a_context_without_tokens_is_answered_by_nothing():
    letters = Tokenizer(models.BPE({"A": 0, "C": 1}, []))
    asked = [Question(id=context, text="A", context=context, answers=(Answer(context, 0),)) for context in ("C", "b")]
    for unanswerable in (False, True):
        cfg = task(unanswerable=unanswerable, max_faults=0.5)
        encoded = cfg.encode(asked, letters, NAMES)
        logits = [np.ones((int(length), 2), np.float32) for length in encoded.examples.lengths]
        assert cfg.measure(encoded, logits, NAMES)["f1"] == 0.5
        found = list(cfg.predict(encoded, logits, NAMES))
        assert [one["answer"] for one in found] == ["C", ""]
        json.dumps(found, allow_nan=False)


def test_questions_without_labels_are_predicted_but_not_trained_on_or_measured(tmp_path):
    path = tmp_path / "ask.jsonl"
    path.write_text(json.dumps({"id": "a", "question": "who", "context": CONTEXT}))
    cfg = task(train="ask.jsonl")
    encoded = cfg.encode(cfg.records(str(path), labelled=False), words(), NAMES)
    logits = logits_of(encoded, {0: (5, 5, 6)})
    assert [found["answer"] for found in cfg.predict(encoded, logits, NAMES)] == ["mat"]
    with pytest.raises(DataError, match=r"ask.jsonl: its questions were read without answers"):
        cfg.loss(encoded, NAMES)
    with pytest.raises(DataError, match=r"question 'a' was read without answers"):
        cfg.measure(encoded, logits, NAMES)


def test_answers_in_no_window_are_refused_or_logged(caplog):
    asked = [question("long", "cat sat on the mat in the old hall"), question("short", "mat")]
    with pytest.raises(DataError, match=r"1 of 2 answers are in no window of 8 tokens \(long\).*task.max_faults=0.4"):
        task(max_tokens=8, max_faults=0.4).encode(asked, words(), NAMES)
    with caplog.at_level(logging.INFO):
        task(max_tokens=8, max_faults=0.5).encode(asked, words(), NAMES)
    assert "2 questions in 4 windows; 0 questions shortened" in caplog.text
    assert "1 answers in no window" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stride": -1}, "task.stride=-1: must be at least 0"),
        ({"max_tokens": 6}, "task.max_tokens=6: must be at least 7"),
        ({"max_question_tokens": 0}, "task.max_question_tokens=0: must be at least 1"),
        ({"n_best": 0}, "task.n_best=0: must be at least 1"),
        ({"max_answer_tokens": 0}, "task.max_answer_tokens=0: must be at least 1"),
        ({"max_faults": 1.5}, "task.max_faults=1.5: must be at least 0"),
        ({"no_answer_threshold": float("nan"), "unanswerable": True}, "task.no_answer_threshold=nan: must be a finite"),
        (
            {"no_answer_threshold": float("-inf"), "unanswerable": True},
            "task.no_answer_threshold=-inf: must be a finite",
        ),
        ({"no_answer_threshold": 1.0}, "task.no_answer_threshold=1.0: is for questions without an answer"),
        ({"columns": {"id": "id"}}, "task.columns={'id': 'id'}: name a column"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message.replace("{", r"\{")):
        task(**settings)


@pytest.mark.shared_data
@pytest.mark.skipif("HEADWATER_DATA" not in os.environ, reason="HEADWATER_DATA names no folder of real data")
def test_answers_of_squad_come_back_exactly_or_are_counted(capsys):
    folder = Path(os.environ["HEADWATER_DATA"])
    tokenizer = load_tokenizer(folder / "bert-uncased-tokenizer" / "tokenizer.json")
    records = QaConfig().records(str(folder / "squad" / "train-v1.1.json.gz"))
    asked = random.Random(5).sample(records, 5000)
    for size, stride in ((384, 128), (96, 8)):
        cfg = QaConfig(max_tokens=size, stride=stride, max_answer_tokens=70, n_best=1, max_faults=0.01)
        encoded = cfg.encode(asked, tokenizer, NAMES)
        assert encoded.examples.labels is not None
        logits = [np.zeros((int(length), 2), np.float32) for length in encoded.examples.lengths]
        for rows, (first, last) in zip(logits, encoded.examples.labels, strict=True):
            rows[first, 0] = rows[last, 1] = 9
        exact = cut = inside = 0
        for one, found, owner in zip(encoded.records, cfg.predict(encoded, logits, NAMES), range(5000), strict=True):
            [answer] = one.question.answers
            if (found["answer"], found["start"]) == answer:
                exact += 1
            elif not encoded.examples.labels[owners(encoded) == owner].any():
                cut += 1
            else:  # a token holds the answer's end and more: "2" in "2nd"
                held = one.context.tokens_of(answer)
                start, end = one.context.offsets[[held[0], held[-1]], [0, 1]]
                assert (start, end) != (answer.start, answer.end)
                assert (found["start"], found["end"]) == (start, end)
                inside += 1
        with capsys.disabled():
            print(f"\n{size}/{stride}: {exact} exact, {cut} cut, {inside} inside a token, {len(logits)} windows")
        assert exact + cut + inside == 5000 and exact >= 4940
        assert cut == 0 if size == 384 else 0 < cut < 50  # short windows that share 8 tokens

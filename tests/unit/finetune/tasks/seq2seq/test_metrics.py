"""Metrics are those of the packages that the field counts with, and small cases are those counted by hand."""

import logging
import math

import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from finetune.tasks.seq2seq.metrics import TEXT_METRICS, signatures, text_metrics

WRITTEN = ["The cat sat on a mat.", "", "Running dogs\nran far away", "Paris"]
IN_DATA = ["The cat sat on the mat.", "nothing here", "The dog runs\nfar away today", "the  Paris!"]


def test_metrics_are_those_of_their_packages():
    found = text_metrics(WRITTEN, IN_DATA, TEXT_METRICS)
    assert list(found) == list(TEXT_METRICS)
    assert found["bleu"] == sacrebleu.corpus_bleu(WRITTEN, [IN_DATA]).score
    assert found["chrf"] == sacrebleu.corpus_chrf(WRITTEN, [IN_DATA]).score
    names = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    scores = [
        RougeScorer(names, use_stemmer=True).score(one, guess) for guess, one in zip(WRITTEN, IN_DATA, strict=True)
    ]
    for name in names:
        assert found[name] == pytest.approx(25 * sum(one[name].fmeasure for one in scores), abs=1e-12)


def test_metrics_counted_by_hand():
    # BLEU: 4 of 5, 3 of 4, 2 of 3 and 1 of 2 n-grams, no shorter. ROUGE: "running" and "runs" have one stem.
    assert text_metrics(["a b c d x"], ["a b c d e"], ["bleu"])["bleu"] == pytest.approx(100 * (24 / 120) ** 0.25)
    found = text_metrics(["dogs running fast", "b a"], ["the dog runs", "a b"], ["rouge1", "rouge2", "rougeL"])
    assert found == pytest.approx({"rouge1": 50 * (2 / 3 + 1), "rouge2": 50 * 0.5, "rougeL": 50 * (2 / 3 + 0.5)})
    assert text_metrics(["b\na"], ["a\nb"], ["rougeL", "rougeLsum"]) == {"rougeL": 50.0, "rougeLsum": 100.0}
    assert text_metrics(["The Paris!", "in Bonn"], ["paris", "Bonn"], ["f1", "exact_match"]) == {
        "exact_match": 0.5,
        "f1": (1 + 2 / 3) / 2,
    }


def test_rouge_says_that_it_cannot_count_other_letters(caplog):
    found = text_metrics(["привет"], ["привет"], ["chrf", "rouge1"])
    assert found["chrf"] == 100 and math.isnan(found["rouge1"])
    assert "rouge1: no value: no reference has a letter a to z" in caplog.text


def test_counting_leaves_the_root_logger_as_it_is(monkeypatch):
    """One handler there, and every line of the run's log would be printed twice."""
    monkeypatch.setattr(logging.root, "handlers", [])
    text_metrics(WRITTEN, IN_DATA, TEXT_METRICS)
    signatures(TEXT_METRICS)
    assert logging.root.handlers == []


def test_signatures_say_how_sacrebleu_counts():
    assert signatures(TEXT_METRICS) == {
        "bleu": f"nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:{sacrebleu.__version__}",
        "chrf": f"nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:{sacrebleu.__version__}",
    }
    assert signatures(["f1"]) == {}


def test_one_prediction_for_each_reference():
    with pytest.raises(ValueError, match="1 predictions for 2 references"):
        text_metrics(["a"], ["a", "b"], ["f1"])

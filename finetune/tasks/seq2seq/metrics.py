"""How close written texts come to those of the data: BLEU, chrF, ROUGE, exact match and F1.

Holds how each package is set; the arithmetic is that of sacreBLEU and rouge-score, and of short
answers that of `qa`. BLEU, chrF and ROUGE are in percent, as the field prints them; exact match and F1 are shares.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from typing import Any

from finetune.tasks.squad import squad_metrics
from pretrain.tracking.no_value import no_value

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
ANSWERS = ("exact_match", "f1")
TEXT_METRICS = ("bleu", "chrf", *ROUGE, *ANSWERS)

_ROUGE_LETTER = re.compile("[a-z0-9]", re.IGNORECASE)  # all others are spaces to rouge-score


def text_metrics(predictions: Sequence[str], references: Sequence[str], wanted: Collection[str]) -> dict[str, float]:
    """Return the `wanted` ones of `TEXT_METRICS`, in their order, for one prediction and one reference per example.

    bleu, chrf: of the corpus, by sacreBLEU as it is set by default (Post 2018, arXiv 1804.08771; Popović 2015); see
    `signatures`. BLEU counts words between spaces and punctuation, so it says nothing of languages without spaces.

    rouge1, rouge2, rougeL: the mean of the F-measures (Lin 2004), with Porter's stemmer, which is for English, as is
    the rule that a word is of the letters a to z and digits. rougeLsum is the same of lines, each of which it takes for
    a sentence: no other rule divides texts. All are NaN if no reference has such a letter.

    exact_match, f1: the mean over short answers in SQuAD's normal form.

    Raises `ValueError` for lengths that differ, and for no examples.
    """
    if len(predictions) != len(references) or not references:
        raise ValueError(f"{len(predictions)} predictions for {len(references)} references: one for each, at least one")
    found: dict[str, float] = {}
    for name in ("bleu", "chrf"):
        if name in wanted:
            found[name] = _corpus_metric(name).corpus_score([*predictions], [[*references]]).score
    if rouge := [name for name in ROUGE if name in wanted]:
        found |= _rouge(predictions, references, rouge)
    if answers := [name for name in ANSWERS if name in wanted]:
        squad = squad_metrics(predictions, [[text] for text in references])
        found |= {name: squad[name] for name in answers}
    return found


def signatures(wanted: Collection[str]) -> dict[str, str]:
    """Return what sacreBLEU calls its way of counting, for those of the metrics that it counts: to be told apart."""
    names = {}
    for name in ("bleu", "chrf"):
        if name in wanted:
            metric = _corpus_metric(name)
            metric.corpus_score(["a"], [["a"]])  # which tells it the number of references
            names[name] = str(metric.get_signature())
    return names


def sentence_scores(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
    """Return the chrF of each prediction, in percent."""
    metric = _corpus_metric("chrf")
    both = zip(predictions, references, strict=True)
    return [metric.sentence_score(prediction, [text]).score for prediction, text in both]


def _corpus_metric(name: str) -> Any:
    """Return sacreBLEU's metric as it is set by default."""
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    return {"bleu": BLEU, "chrf": CHRF}[name]()


def _rouge(predictions: Sequence[str], references: Sequence[str], names: list[str]) -> dict[str, float]:
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer

    if not any(_ROUGE_LETTER.search(text) for text in references):
        return no_value(*names, why="no reference has a letter a to z or a digit, all that ROUGE counts; use chrf")
    # Without a tokenizer it logs that it takes this one, and its log gives the root logger a handler of its own.
    scorer = RougeScorer(names, tokenizer=DefaultTokenizer(use_stemmer=True))
    scores = [scorer.score(text, guess) for guess, text in zip(predictions, references, strict=True)]
    return {name: 100 * math.fsum(one[name].fmeasure for one in scores) / len(scores) for name in names}

"""Entities in tags, and their precision, recall and F1, by `seqeval`.

Tags of whole words arrive here, one list per sentence. All values are shares.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

from pretrain.errors import DataError
from pretrain.tracking.no_value import no_value

Tags = Sequence[Sequence[str]]  # [sentences][words], ragged: "O", or a letter and maybe a hyphen and a type: "B-PER"

UNTYPED = "entity"  # the type of entities whose tags are letters alone

_BIOES = {"L": "E", "U": "S"}  # BILOU's letters: seqeval's
_NAMES = {"f1": "f1-score", "precision": "precision", "recall": "recall"}  # ours: seqeval's


def entity_metrics(predicted: Tags, references: Tags) -> dict[str, float]:
    """Values over all entities (`f1`, `precision`, `recall`), over words (`accuracy`), and of each type (`f1/PER`).

    An entity is right if its type, first and last word are. A quotient by 0 is 0.0, but values over all entities are
    NaN where the references have none. Raises `DataError` for what is no tag, `ValueError` for lengths that differ and
    for no words.
    """
    from seqeval.metrics import accuracy_score, classification_report

    if [len(tags) for tags in predicted] != [len(tags) for tags in references] or not any(map(len, references)):
        raise ValueError("predicted tags and references: one for each word of the same sentences, at least one word")
    truth, guess = ([[_bioes(tag) for tag in tags] for tags in sentences] for sentences in (references, predicted))
    zero: Any = 0  # seqeval declares a string
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=RuntimeWarning)  # of the mean over types where there are none
        report: Any = classification_report(truth, guess, output_dict=True, zero_division=zero)
    values = {name: float(report["micro avg"][key]) for name, key in _NAMES.items()}
    if not report["micro avg"]["support"]:
        values = no_value(*values, why="no word of the data is in an entity")
    values["accuracy"] = float(accuracy_score(truth, guess))
    types = sorted(report.keys() - {"micro avg", "macro avg", "weighted avg"})
    return values | {f"{name}/{kind}": float(report[kind][key]) for kind in types for name, key in _NAMES.items()}


def entity_spans(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """Return the type, first and last word of each entity of a sentence, in order.

    Broken sequences are read as by the script `conlleval` of CoNLL-2000: an I- that continues no entity of its type
    starts one. So tags of all schemes (IOB1 and 2, BIOES, BILOU) are read alike. Raises `DataError` for what is no tag.
    """
    from seqeval.metrics.sequence_labeling import get_entities

    return get_entities([_bioes(tag) for tag in tags])


def entity_type(tag: str) -> str:
    """Return the type of entity that a tag stands for, "O" for none. Raises `DataError` for what is no tag."""
    return _bioes(tag).partition("-")[2] or "O"


@cache
def _bioes(tag: str) -> str:
    """Return a tag as `seqeval` knows it. Raises `DataError` for one that it would take for another with a warning."""
    if tag == "O":
        return tag
    if not re.fullmatch(r"[BIESLU](-.+)?", tag):
        raise DataError(f"entity tag {tag!r}: must be O or one of B I E S L U before a type; rename it in the data")
    return f"{_BIOES.get(tag[0], tag[0])}-{tag[2:] or UNTYPED}"

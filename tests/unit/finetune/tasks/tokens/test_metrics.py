"""Entity values against sentences counted by hand and against a reading of tags written out here."""

import math
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.tasks.tokens.metrics import entity_metrics
from pretrain.errors import DataError


@pytest.fixture(autouse=True)
def no_warnings():
    """No metric may warn its user, whatever it is given."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def counted(right, guessed, real):
    """F1, precision and recall of counts of entities; NaN where the data have none."""
    if not real:
        return math.nan, math.nan, math.nan
    precision, recall = right / guessed if guessed else 0, right / real if real else 0
    return 2 * precision * recall / (precision + recall) if right else 0, precision, recall


def overall(values):
    return tuple(values[name] for name in ("f1", "precision", "recall"))


@pytest.mark.parametrize(
    ("predicted", "references", "counts"),
    [  # one sentence each; then (right, predicted, real) entities
        ("B-PER I-PER O B-LOC", "B-PER I-PER O B-LOC", (2, 2, 2)),
        ("B-PER O O B-LOC", "B-PER I-PER O B-LOC", (1, 2, 2)),
        ("B-PER B-PER", "B-PER I-PER", (0, 2, 1)),
        ("B-LOC I-LOC", "B-PER I-PER", (0, 1, 1)),
        ("I-PER I-PER O", "B-PER I-PER O", (1, 1, 1)),  # an I- after no entity
        ("B-PER I-LOC O", "B-PER O O", (1, 2, 1)),  # the type changes inside
        ("I-PER I-LOC I-LOC", "B-PER B-LOC I-LOC", (2, 2, 2)),
        ("B-PER I-PER I-PER", "B-PER I-PER O", (0, 1, 1)),
        ("O O", "O O", (0, 0, 0)),
        ("B-PER O", "O O", (0, 1, 0)),
    ],
)
def test_bio_by_hand(predicted, references, counts):
    values = overall(entity_metrics([predicted.split()], [references.split()]))
    assert values == pytest.approx(counted(*counts), nan_ok=True)


@pytest.mark.parametrize(
    ("predicted", "references", "counts"),
    [
        ("B-PER E-PER O S-LOC", "B-PER E-PER O S-LOC", (2, 2, 2)),
        ("B-PER I-PER E-PER", "B-PER I-PER E-PER", (1, 1, 1)),
        ("B-PER I-PER O S-LOC", "B-PER E-PER O S-LOC", (2, 2, 2)),  # no end
        ("I-PER E-PER O B-LOC", "B-PER E-PER O S-LOC", (2, 2, 2)),  # no B-; a B- alone
        ("B-PER E-LOC", "B-PER E-PER", (0, 2, 1)),  # the type changes inside
        ("S-PER E-PER", "S-PER S-PER", (2, 2, 2)),
        ("S-PER I-PER S-PER", "B-PER I-PER E-PER", (0, 3, 1)),
        ("B-PER S-PER", "B-PER E-PER", (0, 2, 1)),
    ],
)
def test_bioes_by_hand(predicted, references, counts):
    assert overall(entity_metrics([predicted.split()], [references.split()])) == pytest.approx(counted(*counts))


def test_types_and_words():
    references = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-PER", "B-work-of-art", "I-work-of-art"], []]
    predicted = [["B-PER", "I-PER", "O", "B-PER"], ["O", "B-PER", "B-work-of-art", "O"], []]
    values = entity_metrics(predicted, references)
    assert values == pytest.approx(
        {
            **{"f1": 1 / 2, "precision": 2 / 4, "recall": 2 / 4, "accuracy": 6 / 8},
            **{"f1/LOC": 0, "precision/LOC": 0, "recall/LOC": 0},
            **{"f1/PER": 4 / 5, "precision/PER": 2 / 3, "recall/PER": 1},
            **{"f1/work-of-art": 0, "precision/work-of-art": 0, "recall/work-of-art": 0},
        }
    )


def test_entities_end_with_their_sentence():
    """Two sentences of one entity each, the second without its first word; as one sentence it is one entity."""
    references = [["B-PER"], ["I-PER"]]
    assert overall(entity_metrics(references, references)) == (1, 1, 1)
    apart = entity_metrics([["B-PER"], ["I-PER"]], [["B-PER"], ["O"]])
    assert overall(apart) == pytest.approx(counted(1, 2, 1))
    assert overall(entity_metrics([["B-PER", "I-PER"]], [["B-PER", "O"]])) == (0, 0, 0)


def entity_spans(tags):
    """A word continues the entity before it if both have one type and neither an end nor a start is between them."""
    spans = []
    for place, tag in enumerate(tags):
        if tag == "O":
            continue
        before = tags[place - 1] if place else "O"
        if before[1:] == tag[1:] and before[0] in "BI" and tag[0] in "IE":
            spans[-1] = (tag[2:], (spans[-1][1][0], place + 1))
        else:
            spans.append((tag[2:], (place, place + 1)))
    return set(spans)


def tagged(prefixes):
    tags = st.sampled_from(["O", *(f"{prefix}-{kind}" for prefix in prefixes for kind in ("X", "Y", "X-Y"))])
    sentence = st.lists(st.tuples(tags, tags), max_size=8)
    return st.lists(sentence, min_size=1, max_size=4).filter(any)


@pytest.mark.parametrize("prefixes", ["BI", "BIES"])
@settings(max_examples=60)
@given(data=st.data())
def test_any_tags(prefixes, data):
    sentences = data.draw(tagged(prefixes))
    predicted, references = ([[word[side] for word in words] for words in sentences] for side in (0, 1))

    def entities(tags):
        return {(place, *span) for place, words in enumerate(tags) for span in entity_spans(words)}

    guessed, real = entities(predicted), entities(references)
    values = entity_metrics(predicted, references)
    counts = (len(guessed & real), len(guessed), len(real))
    assert overall(values) == pytest.approx(counted(*counts), abs=1e-12, nan_ok=True)
    kinds = {kind for _, kind, _ in guessed | real}
    assert {name.partition("/")[2] for name in values if "/" in name} == kinds
    for kind in kinds:
        ours, theirs = ({span for span in spans if span[1] == kind} for spans in (guessed, real))
        found = [values[f"{name}/{kind}"] for name in ("f1", "precision", "recall")]
        expected = counted(len(ours & theirs), len(ours), len(theirs)) if theirs else (0, 0, 0)
        assert found == pytest.approx(expected, abs=1e-12)
    words = [word for words in sentences for word in words]
    assert values["accuracy"] == pytest.approx(sum(guess == real for guess, real in words) / len(words))
    assert entity_metrics(predicted[::-1], references[::-1]) == pytest.approx(values, nan_ok=True)
    swapped = entity_metrics(references, predicted)
    if guessed and real:
        assert (swapped["precision"], swapped["recall"]) == (values["recall"], values["precision"])


@pytest.mark.parametrize("tag", ["X-PER", "PER", "B-", "OTHER", "b-PER", "PER-B", ""])
def test_foreign_tags_are_refused_by_name(tag):
    with pytest.raises(DataError, match=f"entity tag '{tag}': must be O or one of B I E S L U before a type"):
        entity_metrics([["O"]], [[tag]])
    with pytest.raises(DataError, match=f"'{tag}'"):
        entity_metrics([[tag]], [["O"]])


@pytest.mark.parametrize(
    ("predicted", "references"), [([["O"]], [["O", "O"]]), ([["O"]], [["O"], ["O"]]), ([], []), ([[]], [[]])]
)
def test_what_is_no_pair_of_taggings_is_refused(predicted, references):
    with pytest.raises(ValueError, match="one for each word"):
        entity_metrics(predicted, references)

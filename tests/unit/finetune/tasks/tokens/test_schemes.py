"""Schemes of tags: told from data, measured as `seqeval` does in its mode for the scheme, predicted as they were."""

import json
import logging

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Sequence, Value
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval import scheme as seqeval_schemes
from seqeval.metrics import f1_score, precision_score, recall_score
from tokenizers import Tokenizer, models, pre_tokenizers

from finetune.tasks.tokens.metrics import entity_metrics, entity_spans
from finetune.tasks.tokens.sentences import TagScheme, scheme_of
from finetune.tasks.tokens.task import TokensConfig
from pretrain.errors import ConfigError, DataError

THEIRS = {
    TagScheme.bio: seqeval_schemes.IOB2,
    TagScheme.iob1: seqeval_schemes.IOB1,
    TagScheme.bioes: seqeval_schemes.IOBES,
    TagScheme.bilou: seqeval_schemes.BILOU,
}
LETTERS = {TagScheme.bio: "BIIB", TagScheme.iob1: "IIII", TagScheme.bioes: "BIES", TagScheme.bilou: "BILU"}
"""Of the first, inner and last word of an entity, and of a single one."""

LENGTHS = st.lists(st.tuples(st.sampled_from(["", "X", "Y", "X-Y"]), st.integers(1, 4)), min_size=1, max_size=6)
"""Pieces of a sentence: of no type, or an entity of this type, and how many words."""


def spelled(pieces, scheme, separator="-"):
    tags = []
    for number, (kind, length) in enumerate(pieces):
        if not kind:
            tags += ["O"] * length
            continue
        first, inner, last, single = LETTERS[scheme]
        letters = single if length == 1 else first + inner * (length - 2) + last
        if scheme is TagScheme.iob1 and number and pieces[number - 1][0] == kind:
            letters = "B" + letters[1:]
        tags += [f"{letter}{separator}{kind}" for letter in letters]
    return tags


def spans(pieces):
    found, place = [], 0
    for kind, length in pieces:
        found += [(kind, place, place + length - 1)] if kind else []
        place += length
    return found


@pytest.mark.parametrize("scheme", THEIRS)
@settings(max_examples=20)
@given(sentences=st.lists(st.tuples(LENGTHS, LENGTHS), min_size=1, max_size=3))
def test_well_spelled_tags_are_measured_as_in_seqevals_strict_mode(scheme, sentences):
    tags = [[spelled(side, scheme) for side in pair] for pair in sentences]
    for pair, (truth, guess) in zip(tags, sentences, strict=True):
        size = max(map(len, pair))
        assert entity_spans(pair[0]) == spans(truth) and entity_spans(pair[1]) == spans(guess)
        pair[:] = [row + ["O"] * (size - len(row)) for row in pair]
    truth, guess = ([pair[side] for pair in tags] for side in (0, 1))
    ours = entity_metrics(guess, truth)
    for name, theirs in {"f1": f1_score, "precision": precision_score, "recall": recall_score}.items():
        value = theirs(truth, guess, mode="strict", scheme=THEIRS[scheme], zero_division=0)
        known = any(tag != "O" for row in truth for tag in row)  # else there is nothing to be measured
        assert ours[name] == pytest.approx(value if known else np.nan, nan_ok=True), name


@pytest.mark.parametrize("scheme", THEIRS)
@settings(max_examples=20)
@given(pieces=st.lists(LENGTHS, min_size=1, max_size=3))
def test_letters_alone_are_entities_of_one_type(scheme, pieces):
    one = [[("entity" if kind else "", length) for kind, length in row] for row in pieces]
    tags = [[tag[:1] for tag in spelled(row, scheme)] for row in one]
    assert [entity_spans(row) for row in tags] == [spans(row) for row in one]


def test_broken_bilou_is_read_as_broken_bioes():
    for tags in ("B-X L-X L-X", "I-X U-X I-X L-X", "L I L B U O L"):
        assert entity_spans(tags.split()) == entity_spans(tags.replace("L", "E").replace("U", "S").split())
    assert entity_spans(["B-X", "L-X", "L-X"]) == [("X", 0, 1), ("X", 2, 2)]


@pytest.mark.parametrize("bare", [False, True], ids=["types", "letters"])
@pytest.mark.parametrize("scheme", THEIRS)
def test_the_scheme_is_told_from_the_data_and_said(tmp_path, caplog, scheme, bare):
    caplog.set_level(logging.INFO)
    rows = [[("", 2), ("X", 1), ("X", 3), ("", 1)], [("Y", 2), ("X", 1)], [("X-Y", 1), ("X-Y", 1), ("", 3)]]
    tags = [spelled([(kind and "X" if bare else kind, length) for kind, length in row], scheme) for row in rows]
    tags = [[tag[:1] if bare else tag for tag in row] for row in tags]
    file = tmp_path / "a.conll"
    file.write_text("\n\n".join("\n".join(f"w {tag}" for tag in row) for row in tags))
    sentences = TokensConfig().records(str(file))
    assert [sentence.tags for sentence in sentences] == tags
    assert f"{file}: tags are spelled as in task.scheme={scheme}" in caplog.text
    assert "not spelled" not in caplog.text
    assert TokensConfig(scheme=scheme).records(str(file)) == sentences


def test_what_fits_several_schemes_is_bio():
    assert scheme_of([["O", "O"]]) is TagScheme.bio
    assert scheme_of([["B-X", "I-X", "I-X"], ["I-Y"]]) is TagScheme.bio, "one entity each way"


def test_entities_that_the_scheme_in_use_spells_otherwise_are_counted(tmp_path, caplog):
    file = tmp_path / "a.conll"
    file.write_text("".join(f"w {tag}\n" for tag in ["B-X", "I-X", "O", "B-Y", "O", "I-X", "I-Y", "O", "B-Y"]))
    TokensConfig().records(str(file))
    assert f"2 entities are not spelled as in bio ({file}:6: I-X, {file}:7: I-Y)" in caplog.text


def letters_of(text):
    """A tokenizer of single words."""
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(["?", *text])}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


@pytest.mark.parametrize(
    "tags",
    [
        "O B I B I I O B",
        "O I-X I-X B-X O I-Y O O",
        "U-X O B-X L-X O B-Y I-Y L-Y",
        "S O B E O B I E",
        "O B-A-b I-A-b O B-b O O O",
    ],
)
def test_predictions_are_spelled_as_the_data(tmp_path, tags):
    tags = tags.split()
    words = [*"abcdefgh"]
    file = tmp_path / "a.conll"
    file.write_text("".join(f"{word} {tag}\n" for word, tag in zip(words, tags, strict=True)))
    task = TokensConfig()
    records = task.records(str(file))
    names = task.names(records)
    assert names == ["O", *sorted({*tags} - {"O"})]
    encoded = task.encode(records, letters_of("abcdefgh"), names)
    logits = [np.eye(len(names), dtype=np.float32)[encoded.examples.targets] * 9]
    [found] = task.predict(encoded, logits, names)
    assert found["tags"] == tags
    assert [(entity["type"], entity["words"]) for entity in found["entities"]] == [
        (kind, words[first : last + 1]) for kind, first, last in entity_spans(tags)
    ]
    assert task.measure(encoded, logits, names)["f1"] == 1
    [numbers, *_] = task.sections(encoded, logits, names, {})
    assert all(kind in str(numbers) for kind, *_ in entity_spans(tags))


@pytest.mark.parametrize(
    ("tag", "fix"),
    [
        ("b-PER", "'b-PER'; write its letter as a capital"),
        ("i", "'i'; write its letter as a capital"),
        ("o", "'o'; write its letter as a capital"),
        ("PER-B", "'PER-B'; write its letter before the type"),
        (3, "3; name the integers in task.labels, or choose task.scheme=none"),
        ("NOUN", "'NOUN')"),
    ],
)
def test_what_is_nearly_a_tag_is_named_with_its_fix(tmp_path, tag, fix):
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"words": ["a", "b"], "tags": ["O", tag]}))
    with pytest.raises(DataError) as refusal:
        TokensConfig().records(str(file))
    assert f"no tag of task.scheme=auto: 1 ({file}:1, word 2: {fix}" in str(refusal.value)


def test_tags_that_the_data_set_names(tmp_path):
    def written(numbers, names, name="train.parquet"):
        features = Features(words=Sequence(Value("string")), tags=Sequence(ClassLabel(names=names)))
        rows = {"words": [["a", "b"]] * len(numbers), "tags": numbers}
        Dataset.from_dict(rows, features=features).to_parquet(tmp_path / name)
        return str(tmp_path / name)

    task = TokensConfig(train="train.parquet")
    names = ["O", "I-Y", "B-X", "B-Y"]
    records = task.records(written([[2, 0], [3, 1]], names))
    assert [sentence.tags for sentence in records] == [["B-X", "O"], ["B-Y", "I-Y"]]
    assert task.names(records) == names
    assert task.encode(records, letters_of("ab"), names).examples.targets.tolist() == [2, 0, 3, 1]
    assert task.names(task.records(written([[0, 1]], ["B-X", "B-Y"]))) == ["O", "B-X", "B-Y"]
    with pytest.raises(DataError, match=r"no tag of task.scheme=auto: 1 \(.*train.parquet, row 1, word 2: None\)"):
        task.records(written([[0, 1], [0, -1]], names))
    with pytest.raises(
        DataError, match=r"train.parquet: 'X', one of the names of its tags, is none of task.scheme=auto"
    ):
        task.names(task.records(written([[0, 1]], ["O", "B-X", "X"])))
    others = task.records(written([[0, 1]], ["O", "B-PER"], "validation.parquet"))
    rule = "the names of its classes are O, B-PER, but those of task.train=train.parquet are O, I-Y, B-X, B-Y"
    with pytest.raises(DataError, match=f"validation.parquet, row 0: {rule}"):
        task.encode(others, letters_of("ab"), names)
    plain = TokensConfig(scheme=TagScheme.none)
    assert plain.names(plain.records(written([[0, 1]], ["NOUN", "ADJ", "X"]))) == ["NOUN", "ADJ", "X"]


def test_integers_are_indices_of_labels_or_names_themselves(tmp_path):
    file = tmp_path / "a.jsonl"
    rows = [[10, 9, 2], [0, 2, 2]]
    file.write_text("".join(json.dumps({"words": ["a", "b", "c"], "tags": row}) + "\n" for row in rows))
    plain = TokensConfig(scheme=TagScheme.none)
    records = plain.records(str(file))
    assert [sentence.tags for sentence in records] == [["10", "9", "2"], ["0", "2", "2"]]
    assert plain.names(records) == ["0", "2", "9", "10"]
    labels = ["O", *(f"{letter}-{number}" for letter in "BI" for number in range(5))]
    named = TokensConfig(labels=labels).records(str(file))
    assert [sentence.tags for sentence in named] == [["I-4", "I-3", "B-1"], ["O", "B-1", "B-1"]]
    with pytest.raises(ConfigError, match=r"task.labels=.*'0' is no tag of task.scheme=auto"):
        TokensConfig(labels=["0", "1"])

"""Sentences from CoNLL columns, JSON lines and Parquet; what is left out or refused, by file, line and name."""

import gzip
import json
import logging
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune.tasks.tokens.sentences import Sentence, TagScheme
from finetune.tasks.tokens.task import TagColumns, TokensConfig
from pretrain.data.batch import IGNORED
from pretrain.errors import ConfigError, DataError
from pretrain.tokenizer.base import load_tokenizer


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a file where the test runs, and return its name."""
    monkeypatch.chdir(tmp_path)

    def write(content, name="train.conll"):
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return name

    return write


def test_columns_between_spaces(write):
    file = write(
        "-DOCSTART- -X- O O\n\n\nEU NNP B-NP  B-ORG\n U.N. NNP I-NP B-ORG\n \t\n-DOCSTART- -X-\nAnn NN O O\r\n"
    )
    assert TokensConfig().records(file) == [
        Sentence(["EU", "U.N."], ["B-ORG", "B-ORG"], "train.conll:4", [4, 5]),
        Sentence(["Ann"], ["O"], "train.conll:8", [8]),
    ]
    plain = TokensConfig(scheme=TagScheme.none, tag_column=1)
    assert [sentence.tags for sentence in plain.records(file)] == [["NNP", "NNP"], ["NN"]]
    swapped = TokensConfig(scheme=TagScheme.none, word_column=-3, tag_column=0)
    assert swapped.records(file)[0] == Sentence(["NNP", "NNP"], ["EU", "U.N."], "train.conll:4", [4, 5])
    assert TokensConfig().records(file, labelled=False)[1] == Sentence(["Ann"], None, "train.conll:8", [8])


def test_columns_between_tabs(write):
    content = "\ufeffNew York\tB-LOC\n\u00a0\tO\n\t\n\ufeff\n\u2028x\u0085\tO\n# \tO"
    file = write(gzip.compress(content.encode()), "train.tsv.gz")
    assert [(found.words, found.tags) for found in TokensConfig().records(file)] == [
        (["New York", "\u00a0"], ["B-LOC", "O"]),
        (["\u2028x\u0085", "# "], ["O", "O"]),
    ]
    words = write("In\nSão\n\nPaulo")
    assert [found.words for found in TokensConfig().records(words, labelled=False)] == [["In", "São"], ["Paulo"]]


def test_lists_of_other_formats(write):
    rows = [{"words": ["São", "Paulo"], "tags": ["B-LOC", "I-LOC"]}, {"words": ["a"], "tags": ["O"]}]
    lines = write("\n".join(map(json.dumps, rows)), "train.jsonl")
    found = TokensConfig().records(lines)
    assert found[1] == Sentence(["a"], ["O"], "train.jsonl:2") and found[0].tags == ["B-LOC", "I-LOC"]
    pq.write_table(pa.table({"tokens": [row["words"] for row in rows], "ner": [[1, 2], [0]]}), "train.parquet")
    columns = TagColumns(words="tokens", tags="ner")
    numbered = TokensConfig(columns=columns, labels=["O", "B-LOC", "I-LOC"]).records("train.parquet")
    assert [found.tags for found in numbered] == [["B-LOC", "I-LOC"], ["O"]]
    unlabelled = write('{"words": ["a"]}', "new.jsonl")
    assert TokensConfig().records(unlabelled, labelled=False) == [Sentence(["a"], None, "new.jsonl:1")]
    with pytest.raises(ConfigError, match=r"task.columns.tags=tags: new.jsonl has no such column"):
        TokensConfig().records(unlabelled)


@pytest.mark.parametrize(
    ("scheme", "bad"),
    [
        ("bio", ["PER", "B-", "S-PER", "OO", "E-PER", "E", "B_PER"]),
        ("bioes", ["PER", "U-PER", "L-PER", "U"]),
        ("bilou", ["PER", "S-PER", "E-PER"]),
        ("auto", ["PER", "NOUN", "", "OO", "BI-X"]),
    ],
)
def test_tags_outside_the_scheme(write, scheme, bad):
    for tag in bad:
        file = write("\n".join(json.dumps({"words": ["a", "b"], "tags": ["O", tag]}) for tag in ["O", tag]), "a.jsonl")
        with pytest.raises(DataError) as refusal:
            TokensConfig(scheme=TagScheme(scheme)).records(file)
        assert f"no tag of task.scheme={scheme}: 1 (a.jsonl:2, word 2: {tag!r})" in str(refusal.value)
        assert len(TokensConfig(scheme=TagScheme.none, max_faults=0.5).records(file)) == 2 - (not tag)


def test_bad_lines_are_counted_and_refused_beyond_a_share(write, caplog):
    good = "a\tO\nb\tB-X\n\n"
    file = write((good * 6 + "a\tO\nb\n\n" + "a\tO\nb\tC-X\nb\tD-X\n\n" + "c\tO\n").encode() + b"\xff\tO\n\n")
    with pytest.raises(DataError) as refusal:
        TokensConfig(max_faults=0.3).records(file)
    for message in (
        "train.conll: 3 of 9 records are bad, more than task.max_faults=0.3",
        "no tag of task.scheme=auto: 1 (train.conll:23: 'C-X')",
        "not UTF-8: 1 (train.conll:27: ",
        "too few or too many columns: 1 (train.conll:20: 1, expected 2)",
    ):
        assert message in str(refusal.value)
    with caplog.at_level(logging.WARNING):
        assert len(TokensConfig(max_faults=0.34).records(file)) == 6
    assert "3 of 9 records are bad and left out" in caplog.text


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"words": "a b", "tags": ["O"]}, "no list of words: 1 (a.jsonl:1: 'a b')"),
        ({"words": ["a", None], "tags": ["O", "O"]}, "no list of words: 1 (a.jsonl:1: ['a', None])"),
        ({"words": [], "tags": []}, "no words: 1 (a.jsonl:1: an empty list)"),
        ({"words": ["a"], "tags": None}, "no list of tags: 1 (a.jsonl:1: None)"),
        ({"words": ["a", "b"], "tags": ["O"]}, "words and tags differ in number: 1 (a.jsonl:1: 2 and 1)"),
        (
            {"words": ["a"], "tags": [2]},
            "no tag of task.scheme=auto: 1 (a.jsonl:1, word 1: 2; name the integers in task.labels",
        ),
        ({"words": ["a"], "tags": [True]}, "no tag of task.scheme=auto: 1 (a.jsonl:1, word 1: True)"),
        ({"words": ["\ud800"], "tags": ["O"]}, "not UTF-8: 1 (a.jsonl:1"),
    ],
)
def test_bad_lists(write, values, message):
    with pytest.raises(DataError) as refusal:
        TokensConfig(labels=["O", "B-X"]).records(write(json.dumps(values), "a.jsonl"))
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("scheme", "tags", "message"),
    [
        ("bio", "O I-X I-X B-X", "1 entities are not spelled as in bio (a.conll:2: I-X I-X)"),
        ("bio", "B-X I-Y O O", "1 entities are not spelled as in bio (a.conll:2: I-Y)"),
        ("bioes", "B-X I-X O S-X", "1 entities are not spelled as in bioes (a.conll:1: B-X I-X)"),
        ("bioes", "B-X E-X B-X E-Y", "2 entities are not spelled as in bioes (a.conll:3: B-X, a.conll:4: E-Y)"),
        ("iob1", "I-X I-X O B-X", "1 entities are not spelled as in iob1 (a.conll:4: B-X)"),
        ("iob1", "I-X I-Y I-X", None),
        ("iob1", "I-X B-X I-X B-X I-Y", None),
        ("iob1", "I-X B-Y", "1 entities are not spelled as in iob1 (a.conll:2: B-Y)"),
        ("bilou", "B-X L-X U-X I-X", "1 entities are not spelled as in bilou (a.conll:4: I-X)"),
        ("bilou", "B I L O U", None),
        ("bio", "B I O I", "1 entities are not spelled as in bio (a.conll:4: I)"),
        ("bio", "O B-X I-X B-X", None),
        ("bioes", "B-X I-X E-X S-X", None),
        ("none", "I-X O E-X I-X", None),
    ],
)
def test_misspelled_entities_are_logged_and_kept(write, caplog, scheme, tags, message):
    file = write("".join(f"w {tag}\n" for tag in tags.split()), "a.conll")
    [sentence] = TokensConfig(scheme=TagScheme(scheme)).records(file)
    assert sentence.tags == tags.split()
    assert (message in caplog.text) if message else not caplog.records


def test_names_depend_on_the_content_alone():
    records = [Sentence(["a", "b"], [tag, "B-Y"], "f:1") for tag in ("I-Y", "B-X", "I-X")]
    assert TokensConfig().names(records) == TokensConfig().names(records[::-1]) == ["O", "B-X", "B-Y", "I-X", "I-Y"]
    plain = TokensConfig(scheme=TagScheme.none)
    assert plain.names(records) == ["B-X", "B-Y", "I-X", "I-Y"]
    assert plain.names([Sentence(["a", "b", "c"], ["NN", "O", "DT"], "f:1")]) == ["O", "DT", "NN"]
    assert TokensConfig(labels=["B-Z", "O"]).names(records) == ["B-Z", "O"]
    with pytest.raises(DataError, match=r"task.train: all words have the tag 'O': there is nothing to learn"):
        TokensConfig().names([Sentence(["a"], ["O"], "f:1")])
    with pytest.raises(DataError, match="f:1: no tags"):
        TokensConfig().names([Sentence(["a"], None, "f:1")])


def test_a_tag_that_training_lacks_is_refused_by_name():
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    records = [Sentence(["a", "b"], ["O", tag], f"f:{n}", range(n, n + 2)) for n, tag in enumerate(["O", "B-X", "B-Y"])]
    with pytest.raises(DataError, match=r"tags other than O, B-X: 1 of 3 .*unknown tag 'B-Y': 1 \(f:3: 'b'\)"):
        TokensConfig().encode(records, tokenizer, ["O", "B-X"])
    assert len(TokensConfig(max_faults=0.4).encode(records, tokenizer, ["O", "B-X"]).records) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "task.max_tokens=0"),
        ({"label_smoothing": 1.0}, "task.label_smoothing=1.0"),
        ({"max_faults": 1.0}, "task.max_faults=1.0"),
        ({"labels": ["O", "O"]}, "name each tag once"),
        ({"labels": ["O"]}, "at least two"),
        ({"labels": ["O", "PER"]}, "'PER' is no tag of task.scheme=auto"),
        ({"labels": ["B-X", "B-Y"]}, "must have O"),
        ({"metric": "f2"}, "must be one of f1, precision, recall, accuracy for task.scheme=auto"),
        ({"metric": "f1", "scheme": TagScheme.none}, "must be one of accuracy for task.scheme=none"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ConfigError, match=message):
        TokensConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tag_column": 2}, r"task.tag_column=2: no such column, a.txt:2 has 2"),
        ({"word_column": -3}, r"task.word_column=-3: no such column, a.txt:2 has 2"),
        ({"word_column": 1}, r"task.tag_column=-1: also the column of words"),
    ],
)
def test_columns_that_are_not_there(write, options, message):
    with pytest.raises(ConfigError, match=message):
        TokensConfig(**options).records(write("\na O\n", "a.txt"))


def test_files_that_are_not_there(write):
    with pytest.raises(ConfigError, match=r"none.conll: no such file"):
        TokensConfig().records("none.conll")
    with pytest.raises(DataError, match=r"empty.conll: there is no record in it"):
        TokensConfig().records(write("\n\n-DOCSTART- O\n", "empty.conll"))


@pytest.mark.shared_data
@pytest.mark.skipif("HEADWATER_DATA" not in os.environ, reason="HEADWATER_DATA names no folder of real data")
def test_wnut(caplog):
    """All of WNUT-17: the sentences and words that its authors count, every word found, ideal answers measured as 1."""
    folder = Path(os.environ["HEADWATER_DATA"])
    tokenizer = load_tokenizer(folder / "bert-uncased-tokenizer" / "tokenizer.json")
    files = {"wnut17train.conll": (3394, 62730), "emerging.dev.conll": (1009, 15733)}
    files["emerging.test.annotated"] = (1287, 23394)
    train = str(folder / "wnut17" / "wnut17train.conll")
    names = TokensConfig(train=train).names(TokensConfig().records(train))
    kinds = ["corporation", "creative-work", "group", "location", "person", "product"]
    assert names == ["O", *(f"{letter}-{kind}" for letter in "BI" for kind in kinds)]
    for file, counts in files.items():
        for max_tokens in (12, 512) if "dev" in file else (64,):
            task = TokensConfig(max_tokens=max_tokens)
            records = task.records(str(folder / "wnut17" / file))
            assert (len(records), sum(len(sentence.words) for sentence in records)) == counts
            encoded = task.encode(records, tokenizer, names)
            targets = encoded.examples.targets
            logits = np.eye(len(names), dtype=np.float32)[np.where(targets == IGNORED, 5, targets)]
            values = task.measure(encoded, np.split(logits, encoded.examples.offsets[1:-1]), names)
            assert values["f1"] == values["accuracy"] == 1
            lost = {word for record in encoded.records for word in np.array(record.sentence.words)[record.first < 0]}
            assert lost <= {"\ufe0f"}, "a variation selector alone"
    assert "emerging.dev.conll: 1 entities are not spelled as in bio" in caplog.text

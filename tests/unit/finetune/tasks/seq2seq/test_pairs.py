"""Pairs are read from every format alike, prompts hold what their template names, and what does not pair is refused."""

import bz2
import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune.tasks.seq2seq.pairs import Pair, PromptTemplate, read_pairs
from pretrain.errors import ConfigError, DataError

TEXTS = [("a dog", "ein Hund"), ("two\u2028cats", "zwei\x85Katzen"), ("it's 5 €", " fünf ")]


def read(source, template="{source}", **changes) -> list[Pair]:
    settings = {"source_column": "en", "target_column": "de", "labelled": True, "max_faults": 0.0}
    return read_pairs(source if isinstance(source, list) else str(source), template, **settings | changes)


def texts(pairs: list[Pair]) -> list[tuple[str, str | None]]:
    return [(pair.source, pair.target) for pair in pairs]


def two_files(folder, sources: bytes, targets: bytes) -> str:
    (folder / "part.en").write_bytes(sources)
    (folder / "part.de.gz").write_bytes(gzip.compress(targets))
    return f"{folder / 'part.en'}+{folder / 'part.de.gz'}"


def test_every_format_has_the_same_pairs(tmp_path):
    records = [{"en": source, "de": target} for source, target in TEXTS]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    pq.write_table(
        pa.table({"de": [target for _, target in TEXTS], "en": [one for one, _ in TEXTS]}), tmp_path / "a.parquet"
    )
    rows = "".join(f"{target}\t{source}\n" for source, target in TEXTS)
    (tmp_path / "a.tsv.bz2").write_bytes(bz2.compress(rows.encode()))
    lines = ["\r\n".join(column) for column in zip(*TEXTS, strict=True)]
    joined = two_files(tmp_path, b"\xef\xbb\xbf" + lines[0].encode(), lines[1].encode() + b"\n")
    for source in (tmp_path / "a.jsonl", tmp_path / "a.parquet", joined, records, TEXTS):
        assert texts(read(source)) == TEXTS == texts(read(source, labelled=False))
    assert texts(read(tmp_path / "a.tsv.bz2", header=["de", "en"])) == TEXTS
    for source in (tmp_path / "a.jsonl", tmp_path / "a.parquet", tmp_path / "a.tsv.bz2", records):
        without = read(source, labelled=False, target_column="fr", header=["de", "en"])
        assert texts(without) == [(one, None) for one, _ in TEXTS]
    assert [pair.place for pair in read(joined)] == [f"{tmp_path / 'part.en'}:{line}" for line in (1, 2, 3)]


def test_predictions_need_sources_alone_and_keep_targets(tmp_path):
    joined = two_files(tmp_path, b"a\nb\n", b"c\n \n")
    for source in (tmp_path / "part.en", ["a", "b"], [{"en": "a"}, {"en": "b", "de": ["no text"]}]):
        assert texts(read(source, labelled=False)) == [("a", None), ("b", None)]
    for source in (joined, [("a", "c"), "b"], [{"en": "a", "de": "c"}, {"en": "b", "de": "\ud800"}]):
        assert texts(read(source, labelled=False)) == [("a", "c"), ("b", None)]


def test_a_prompt_holds_the_columns_that_its_template_names():
    records = [
        {"en": "one", "task": "Count", "more": None, "de": 1},
        {"en": "two", "task": "Add", "more": "x", "de": 2},
    ]
    template = r"{task}: {{{source}}}\n{more}"
    assert texts(read(records, template)) == [("Count: {one}\n", "1"), ("Add: {two}\nx", "2")]
    assert texts(read([("Count", "one", "1")], "{task} {en}")) == [("Count one", "1")]
    assert texts(read(records, "{more}", max_faults=0.5)) == [("x", "2")]  # nothing to read in the first
    assert PromptTemplate("{a.b} {c d} {a.b}").names == ["a.b", "c d"]


@pytest.mark.parametrize("template", ["{", "no column", "{}", "{source!r}", "{source:>9}", '{"json": {source}}'])
def test_templates_that_cannot_be_read_are_refused(template):
    with pytest.raises(ConfigError, match=r"task\.template='.*must name columns in braces"):
        PromptTemplate(template)


@pytest.mark.parametrize(
    ("template", "rule"),
    [
        ("{task}", r"task\.template=\{task\}: the list given has no such column; did you mean tasks\?"),
        (
            "{source} {de}",
            r"task\.template=\{de\}: task\.columns\.target=de: the model would read what it should write",
        ),
        ("{target}", r"task\.template=\{target\}: task\.columns\.target=de"),
    ],
)
def test_columns_that_a_prompt_may_not_name(template, rule):
    with pytest.raises(ConfigError, match=rule):
        read([{"en": "a", "de": "b", "tasks": "c"}], template)


def test_files_that_do_not_pair_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"part\.en has 3 lines, .*part\.de\.gz 2: line n of one belongs to line n"):
        read(two_files(tmp_path, b"a\nb\nc\n", b"x\ny"))
    with pytest.raises(DataError, match=r"part\.en: CR alone ends its lines, expected LF or CR LF"):
        read(two_files(tmp_path, b"a\rb\rc\r", b"x\ry\rz\r"))
    with pytest.raises(ConfigError, match=r"part\.en: a file of text has no targets; .*part\.en\+TARGETS"):
        read(tmp_path / "part.en")
    with pytest.raises(ConfigError, match=r"part\.fr: no such file; name two files of text, SOURCES\+TARGETS"):
        read(f"{tmp_path / 'part.en'}+{tmp_path / 'part.fr'}")
    (tmp_path / "a.csv").write_text("en,de\na,b\n")
    with pytest.raises(ConfigError, match=r"a\.csv: not read as lines of text: .* name it alone"):
        read(f"{tmp_path / 'part.en'}+{tmp_path / 'a.csv'}")
    with pytest.raises(ConfigError, match=r"task\.template=\{task\}: .*files of text have no columns, only \{source\}"):
        read(f"{tmp_path / 'part.en'}+{tmp_path / 'part.de.gz'}", "{task} {source}")


def test_a_name_with_a_plus_is_one_file_or_two(tmp_path):
    (tmp_path / "c++.en").write_text("a\n")
    (tmp_path / "c++.de").write_text("b\n")
    assert texts(read(f"{tmp_path / 'c++.en'}+{tmp_path / 'c++.de'}")) == [("a", "b")]
    (tmp_path / "en+de.csv").write_text("en,de\nc,d\n")
    assert texts(read(tmp_path / "en+de.csv")) == [("c", "d")]


def test_empty_sides_and_broken_text_are_counted(tmp_path, caplog):
    joined = two_files(tmp_path, b"a\n \nb\n\xff\nc\n", b"x\ny\n\nz\nw\n")
    with pytest.raises(DataError, match=r"3 of 5 records are bad, more than task\.max_faults=0\.5") as refused:
        read(joined, max_faults=0.5)
    for said in ("empty source: 1", "empty target: 1", "not UTF-8: 1", "part.en:2", "part.en:3", "part.en:4"):
        assert said in str(refused.value)
    assert texts(read(joined, max_faults=0.6)) == [("a", "x"), ("c", "w")]
    assert "3 of 5 records are bad and left out" in caplog.text
    with pytest.raises(DataError, match=r"empty target: 1 .*no text: 1"):
        read([{"en": "a", "de": None}, {"en": ["a"], "de": "b"}])

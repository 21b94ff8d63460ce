"""Labelled files that are something else than their names say: read by their content, or named with what to do."""

import bz2
import gzip
import json
import lzma

import pyarrow as pa
import pyarrow.parquet
import pytest

from finetune.data.records import read_records
from finetune.tasks.qa.questions import read_questions
from finetune.tasks.tokens.conll import read_columns
from pretrain.data.sources.bad_records import BadRecords
from pretrain.errors import DataError

COLUMNS = {"text": "text", "label": "label"}
ROWS = [("où ça", "a"), ("naïve élève", "b"), ("plain", "a")]
CONTENTS = {
    "csv": "text,label\n" + "".join(f'"{text}",{label}\n' for text, label in ROWS),
    "tsv": "text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in ROWS),
    "jsonl": "".join(json.dumps({"text": text, "label": label}, ensure_ascii=False) + "\n" for text, label in ROWS),
}


def values(file, columns=COLUMNS) -> list[tuple]:
    bad = BadRecords(str(file), allowed=0.0)
    found = [tuple(record.values.values()) for record in read_records(str(file), columns, bad)]
    bad.settle(len(found))
    return found


@pytest.mark.parametrize("form", CONTENTS)
def test_marks_and_compression_are_known_by_the_content(tmp_path, form):
    for pack in (bytes, gzip.compress, lzma.compress, bz2.compress, pa.Codec("zstd").compress):
        for name in (f"a.{form}", f"a.{form}.gz", f"A.{form.upper()}.ZST"):
            for encoding in ("utf-8", "utf-8-sig"):
                file = tmp_path / name
                file.write_bytes(bytes(pack(CONTENTS[form].encode(encoding))))
                assert values(file) == ROWS


def test_lines_of_files_that_were_joined_with_their_marks(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(CONTENTS["jsonl"].encode("utf-8-sig") * 2)
    assert values(file) == ROWS * 2


@pytest.mark.parametrize("form", CONTENTS)
def test_other_encodings_are_named(tmp_path, form):
    file = tmp_path / f"a.{form}"
    for encoding, name in (
        ("utf-16", "UTF-16"),
        ("utf-16-le", "UTF-16LE"),
        ("utf-32-be", "UTF-32BE"),
        ("cp1252", "Latin-1"),
    ):
        file.write_bytes(CONTENTS[form].encode(encoding))
        with pytest.raises(DataError, match=rf"a\.{form}: .*{name}.*iconv"):
            values(file)


def test_json_that_is_not_one_object_a_line_is_named(tmp_path):
    rows = [{"text": text, "label": label} for text, label in ROWS]
    for name, content in (("list", json.dumps(rows)), ("indented", json.dumps(rows, indent=2))):
        (tmp_path / f"{name}.json").write_text(content)
        with pytest.raises(DataError, match=rf"{name}\.json: a JSON list, expected one object a line"):
            values(tmp_path / f"{name}.json")


def test_fields_within_fields(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [{"meta": {"text": text, "n": 1}, "label": label} for text, label in ROWS]
    columns = {"text": "meta.text", "label": "label"}
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert values(tmp_path / "a.jsonl", columns) == ROWS
    (tmp_path / "folder").mkdir()
    for file in (tmp_path / "a.parquet", tmp_path / "folder" / "train.parquet"):
        pa.parquet.write_table(pa.Table.from_pylist(rows), file)
        assert values(file, columns) == ROWS
    assert values(tmp_path / "folder", columns) == ROWS


def test_a_parquet_file_of_another_name_is_named(tmp_path):
    file = tmp_path / "a.jsonl"
    pa.parquet.write_table(pa.table({"text": ["a"], "label": ["b"]}), file)
    with pytest.raises(DataError, match=r"a\.jsonl: a Parquet file; .* name it \.parquet"):
        values(file)


def test_standard_input_that_is_compressed_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.gz").write_bytes(gzip.compress(CONTENTS["jsonl"].encode()))
    with (tmp_path / "a.gz").open("rb") as stream:
        monkeypatch.setattr("sys.stdin", type("Stdin", (), {"buffer": stream}))
        with pytest.raises(DataError, match="standard input: compressed data, expected text; decompress it"):
            values("-")


def test_standard_input_of_plain_text_is_shown_the_lines_that_are_read(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("a text\n")
    with (tmp_path / "a.txt").open("rb") as stream:
        monkeypatch.setattr("sys.stdin", type("Stdin", (), {"buffer": stream}))
        bad = BadRecords("-", allowed=0.0)
        assert not [*read_records("-", {"source": "en"}, bad)]
    assert [*bad.counts] == ['not JSON, but standard input has to be lines like {"en": ...}']


def test_questions_and_columns_of_words_in_other_encodings_are_named(tmp_path):
    file = tmp_path / "a.json"
    file.write_bytes(json.dumps({"data": []}).encode("utf-16"))
    with pytest.raises(DataError, match=r"a\.json: text in UTF-16"):
        read_questions(str(file), {}, labelled=False, unanswerable=True, max_faults=0.0)
    file.write_bytes("où O\nélève O\nforêt O\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"a\.json: probably not in UTF-8"):
        [*read_columns(str(file), BadRecords(), word_column=0, tag_column=1)]

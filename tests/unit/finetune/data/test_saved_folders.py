"""Folders of `datasets`: those that `save_to_disk` wrote are read as `load_from_disk` reads them, others with care."""

import logging

import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import Dataset, load_from_disk

from finetune.data.records import read_records
from pretrain.data.sources.bad_records import BadRecords
from pretrain.errors import ConfigError, DataError


def saved(folder, word, number, **options):
    rows = {"text": [f"{word} {row}" for row in range(number)], "label": ["a", "b"] * (number // 2)}
    Dataset.from_dict(rows).save_to_disk(folder, **options)
    return str(folder)


def texts(source):
    return [record.values["text"] for record in read_records(str(source), {"text": "text"}, BadRecords())]


def test_a_path_with_brackets_is_itself(tmp_path):
    saved(tmp_path / "br1", "other", 8)
    assert texts(saved(tmp_path / "br[1]", "right", 6)) == [f"right {row}" for row in range(6)]


def test_caches_and_older_shards_are_not_read(tmp_path):
    folder = saved(tmp_path / "set", "old", 12, num_shards=3)
    saved(folder, "new", 10, num_shards=1)
    mapped = load_from_disk(folder).map(lambda row: {"text": f"mapped {row['text']}"})
    assert len(list((tmp_path / "set").glob("*.arrow"))) == 5 and len(mapped) == 10
    assert texts(folder) == [f"new {row}" for row in range(10)]


def test_text_in_another_encoding_is_named(tmp_path):
    (tmp_path / "train.txt").write_bytes("one line\nanother".encode("utf-16-le"))
    with pytest.raises(DataError, match=r"train.txt: probably text in UTF-16LE"):
        texts(tmp_path)


def test_a_card_may_not_lead_outside(tmp_path):
    (tmp_path / "secret.txt").write_text("not yours")
    (tmp_path / "set").mkdir()
    card = "---\nconfigs:\n- config_name: default\n  data_files: ../secret.txt\n---\n"
    (tmp_path / "set" / "README.md").write_text(card)
    with pytest.raises(ConfigError, match=r"its card names .*secret.txt, which is outside of it"):
        texts(tmp_path / "set")


def test_what_datasets_leaves_out_is_said(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    for number in range(2):
        (tmp_path / f"train-{number}.txt").write_text(f"line {number}\n")
    (tmp_path / "train-2.jsonl").write_text('{"text": "left"}\n')
    assert texts(tmp_path) == ["line 0", "line 1"]
    assert "does not read 1 of its files" in caplog.text and "train-2.jsonl" in caplog.text


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
def test_texts_that_parquet_has_as_bytes_are_texts(tmp_path, kind):
    rows = pa.table({"text": pa.array(["où".encode(), b"\xff", b"b"], kind)})
    pyarrow.parquet.write_table(rows, tmp_path / "rows.parquet")
    bad = BadRecords()
    found = read_records(str(tmp_path / "rows.parquet"), {"text": "text"}, bad)
    assert [record.values["text"] for record in found] == ["où", "b"] and bad.counts == {"not UTF-8": 1}

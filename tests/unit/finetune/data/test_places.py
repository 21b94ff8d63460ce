"""Where a task's data set is: a file here, a folder, a file on a store; by names of any kind, and without secrets."""

import gzip
import io
import json

import fsspec
import pyarrow as pa
import pytest
from pyarrow import parquet
from web_server import serving

from finetune.data.records import read_records
from finetune.tasks.classification.task import ClassificationConfig
from finetune.tasks.qa.task import QaConfig
from finetune.tasks.tokens.task import TokensConfig
from pretrain.data.sources import remote
from pretrain.data.sources.bad_records import BadRecords
from pretrain.data.sources.locations import typed_name
from pretrain.errors import ConfigError

ROWS = [{"text": f"text {number} é", "label": "ab"[number % 2]} for number in range(500)]
CSV = ("text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in ROWS)).encode()
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
CONLL = "".join(f"word{number} O\n\n" for number in range(500)).encode()
SECRET = "s3cr3t"


def as_parquet():
    sink = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(ROWS), sink, row_group_size=90)
    return sink.getvalue()


FILES = {
    "/a.csv": CSV,
    "/a.jsonl": JSONL,
    "/a.parquet": as_parquet(),
    "/a.csv.gz": gzip.compress(CSV),
    "/a.conll": CONLL,
}


def read(typed):
    columns = {"text": "text", "label": "label"}
    return [record.values for record in read_records(typed_name(typed, "task.train"), columns, BadRecords())]


@pytest.mark.parametrize("ranges", [True, False])
def test_files_of_a_web_server_are_read_like_those_here(ranges, monkeypatch):
    monkeypatch.setattr(remote, "WAITS_S", [0.0])
    with serving(FILES) as server:
        server.ranges, server.drop_after = ranges, 4000 if ranges else None
        for name in ("a.csv", "a.jsonl", "a.parquet", "a.csv.gz"):
            assert read(f"{server.url}/{name}") == ROWS, name
        words = TokensConfig(train="", validation="").records(f"{server.url}/a.conll")
        assert [sentence.words for sentence in words] == [[f"word{number}"] for number in range(500)]


def test_squad_on_a_web_server():
    paragraph = {"context": "a b", "qas": [{"id": "1", "question": "?", "answers": [{"text": "b", "answer_start": 2}]}]}
    squad = json.dumps({"data": [{"paragraphs": [paragraph]}]}).encode()
    with serving({"/squad.json": squad}) as server:
        [question] = QaConfig(train="", validation="").records(f"{server.url}/squad.json")
    assert question.context == "a b"


def test_files_of_the_memory_store():
    store = fsspec.filesystem("memory")
    for name, data in FILES.items():
        store.pipe_file(f"/in [v2]{name}", data)
    assert read("memory://in [v2]/a.csv") == read("memory://in [v2]/a.parquet") == ROWS
    store.store.clear()


def test_credentials_open_a_file_and_are_in_no_place_and_no_message(caplog):
    with serving({**FILES, "/bad.csv": b"text,label\n\xff,a\nb,a\nonly one\n"}) as server:
        server.query = f"sv=1&sig={SECRET}"
        assert read(f"{server.url}/a.csv?{server.query}") == ROWS
        task = ClassificationConfig(train="", validation="", max_faults=0.9)
        name = typed_name(f"{server.url}/bad.csv?{server.query}", "task.train")
        [record] = task.records(name)
        assert record.place == f"{server.url}/bad.csv:3"
    assert "bad.csv" in caplog.text and SECRET not in caplog.text


def test_names_of_files_and_folders_are_themselves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    folders = ("in:train", "d@2024", "x/y@z")
    for name in ("a [v2].csv", "a:b.csv", "o@x.csv", "~.csv", *(f"{folder}/train.csv" for folder in folders)):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(CSV)
        assert read(name) == read(f"~/{name}") == read(f"$HOME/{name}") == ROWS
    for folder in folders:
        assert read(folder) == ROWS


def test_another_form_of_unicode_is_named(tmp_path):
    (tmp_path / "cafe\u0301.csv").write_bytes(CSV)
    for name in ("caf\u00e9.csv", "caf\u00e9.conll"):
        (tmp_path / name.replace("\u00e9", "e\u0301")).write_bytes(CSV)
        with pytest.raises(ConfigError, match=r"no such file, but there is '.*cafe\\u0301"):
            TokensConfig(train="", validation="").records(f"{tmp_path}/{name}")

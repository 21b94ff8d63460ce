"""Names of classes: those that the `datasets` library writes come back, wherever it keeps them; damage is refused."""

import json

import pandas
import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Sequence, Value

from finetune.data.classes import class_name, feature_classes
from finetune.data.records import read_records
from pretrain.data.sources.bad_records import BadRecords
from pretrain.errors import DataError

LABELS = ClassLabel(names=["positive", "negative", "10"])
FEATURES = Features(
    text=Value("string"),
    label=LABELS,
    labels=Sequence(LABELS),
    deep=Sequence(Sequence(LABELS)),
    number=Value("int64"),
    answers=Sequence({"text": Value("string"), "kind": LABELS}),
    names={"names": Value("string"), "kind": LABELS},
)
NUMBERS = [2, 0, -1, None, 1]
NAMES = ["10", "positive", None, None, "negative"]
COLUMNS = ["text", "label", "labels", "deep", "number"]


def data_set():
    return Dataset.from_dict(
        {
            "text": [*"abcde"],
            "label": NUMBERS,
            "labels": [[number, 0] for number in NUMBERS],
            "deep": [[[number], []] for number in NUMBERS],
            "number": NUMBERS,
            "answers": [{"text": ["x"], "kind": [0]}] * 5,
            "names": [{"names": "x", "kind": 0}] * 5,
        },
        features=FEATURES,
    )


def read(source, columns=COLUMNS):
    found = BadRecords(str(source))
    records = [*read_records(str(source), {column: column for column in columns}, found)]
    return records, dict(found.counts)


def parquet(folder):
    data_set().to_parquet(folder / "a.parquet")
    return folder / "a.parquet"


def folder_of_parquet(folder):
    (folder / "set" / "data").mkdir(parents=True)
    data_set().to_parquet(folder / "set" / "data" / "train-00000-of-00001.parquet")
    return f"{folder / 'set'}:train"


def saved(folder):
    data_set().save_to_disk(folder / "set")
    return folder / "set"


def saved_with_splits(folder):
    DatasetDict(train=data_set(), test=data_set()).save_to_disk(folder / "set")
    return f"{folder / 'set'}:test"


@pytest.mark.parametrize("write", [parquet, folder_of_parquet, saved, saved_with_splits])
def test_names_are_those_that_were_written(tmp_path, monkeypatch, write):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    records, counts = read(write(tmp_path))
    assert not counts
    assert [record.values["label"] for record in records] == NAMES
    assert [record.values["labels"] for record in records] == [[name, "positive"] for name in NAMES]
    assert [record.values["deep"] for record in records] == [[[name], []] for name in NAMES]
    assert [record.values["number"] for record in records] == NUMBERS, "has no names"
    assert dict(records[0].classes) == dict.fromkeys(["label", "labels", "deep"], tuple(LABELS.names))


def test_fields_of_columns_have_names_too():
    columns = ["label", "labels", "deep", "answers.kind", "names.kind"]
    assert feature_classes(FEATURES.to_dict()) == dict.fromkeys(columns, tuple(LABELS.names))


@pytest.mark.parametrize("form", ["README.md", "dataset_infos.json"])
def test_names_in_a_folders_own_description(tmp_path, monkeypatch, form):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.csv").write_text("text,label\na,2\nb,0\n")
    names = "".join(f"          '{number}': '{name}'\n" for number, name in enumerate(LABELS.names))
    label = f"  - name: label\n    dtype:\n      class_label:\n        names:\n{names}"
    described = {
        "README.md": f"---\ndataset_info:\n  features:\n  - name: text\n    dtype: string\n{label}---\n",
        "dataset_infos.json": json.dumps(
            {"default": {"features": Features(text=Value("string"), label=LABELS).to_dict()}}
        ),
    }
    (folder / form).write_text(described[form])
    records, _ = read(f"{folder}:train", ["text", "label"])
    assert [record.values["label"] for record in records] == ["10", "positive"]


def test_lists_as_older_versions_wrote_them():
    label = {"num_classes": 2, "names": ["a", "b"], "names_file": None, "id": None, "_type": "ClassLabel"}
    assert feature_classes({"x": [label], "y": {"feature": label, "length": -1, "_type": "Sequence"}}) == {
        "x": ("a", "b"),
        "y": ("a", "b"),
    }
    assert feature_classes({"x": {"num_classes": 2, "_type": "ClassLabel"}, "y": None, "z": []}) == {}


def test_a_number_without_a_name_is_a_bad_record(tmp_path):
    file = parquet(tmp_path)
    table = pa.parquet.read_table(file)
    label = pa.array([2, 3, -2, 0, 1])
    pa.parquet.write_table(table.set_column(1, "label", label).replace_schema_metadata(table.schema.metadata), file)
    records, counts = read(file, ["text", "label"])
    assert [record.values["label"] for record in records] == ["10", "positive", "negative"]
    assert counts == {"class without a name": 2}
    assert class_name("a", ("x", "y")) == "a", "a name already"


@pytest.mark.parametrize(
    "metadata",
    [
        b"{",
        b"\xff",
        b"[" * 100_000,
        b"[]",
        b'{"info": []}',
        b'{"info": {"features": [1]}}',
        b'{"info": {"features": {"label": {"names": "ab", "_type": "ClassLabel"}}}}',
        b'{"info": {"features": {"label": {"names": ["a", 1], "_type": "ClassLabel"}}}}',
        b'{"info": {"features": {"label": {"names": ["a", "a"], "_type": "ClassLabel"}}}}',
        b'{"info": {"features": {"label": ' + b'{"feature": ' * 5_000 + b"{}" + b"}" * 5_003,
    ],
)
def test_damaged_metadata_are_refused(tmp_path, metadata):
    file = tmp_path / "a.parquet"
    table = pa.table({"text": ["a"], "label": [0]}).replace_schema_metadata({"huggingface": metadata})
    pa.parquet.write_table(table, file)
    with pytest.raises(DataError, match=f"{file}: names of classes in its metadata 'huggingface' cannot be read"):
        read(file, ["text", "label"])


def test_metadata_of_other_libraries_are_left_alone(tmp_path):
    frame = pandas.DataFrame({"text": ["a", "b", "c"], "label": pandas.Categorical(["x", "y", None], ["z", "y", "x"])})
    file = tmp_path / "a.parquet"
    frame.to_parquet(file)
    records, _ = read(file, ["text", "label"])
    assert [record.values["label"] for record in records] == ["x", "y", None] and not records[0].classes
    table = pa.table({"text": ["a"], "label": [0]}).replace_schema_metadata({"huggingface": b'{"info": {}}'})
    pa.parquet.write_table(table, file)
    assert read(file, ["text", "label"])[0][0].values["label"] == 0


def test_dictionaries_of_arrow_are_their_values(tmp_path):
    file = tmp_path / "a.parquet"
    labels = pa.chunked_array([pa.array(part).dictionary_encode() for part in (["b", "a", "b"], ["c", None, "a"])])
    lists = pa.ListArray.from_arrays([0, 1, 1, 3, 4, 5, 6], pa.array([*"xyxyzx"]).dictionary_encode())
    pa.parquet.write_table(pa.table({"label": labels, "tags": lists}), file)
    records, _ = read(file, ["label", "tags"])
    assert [record.values["label"] for record in records] == ["b", "a", "b", "c", None, "a"]
    assert [record.values["tags"] for record in records] == [["x"], [], ["y", "x"], ["y"], ["z"], ["x"]]

"""Classification: encoding equals transformers', losses torch's, answers arithmetic by hand; faults have names."""

import json
import logging
import math
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Sequence, Value
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from tokenizers import Tokenizer, models, processors
from transformers import AutoTokenizer
from vocabularies import byte_level, word_piece

from finetune.model.losses import ClassWeights
from finetune.tasks.classification.labels import LabelledText
from finetune.tasks.classification.task import ClassificationConfig, Problem, TextColumns
from pretrain.data.batch import IGNORED
from pretrain.errors import ConfigError, DataError
from pretrain.registry import typed
from pretrain.tokenizer.base import load_tokenizer

TEXTS = [
    "the quick brown fox, jumped over a lazy dog's tail",
    "naïve Café 文字 🙂 it's",
    "a",
    "one two three four five six seven eight nine ten",
    "tabs\tand\nlines",
]
PAIR = TextColumns(text_pair="other")


def bert() -> Tokenizer:
    tokenizer = word_piece(TEXTS * 4)
    places = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=places
    )
    return tokenizer


def roberta() -> Tokenizer:
    tokenizer = byte_level(TEXTS)
    places = [(name, tokenizer.token_to_id(name)) for name in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B:0 </s>", special_tokens=places
    )
    return tokenizer


@pytest.fixture(scope="module", params=[bert, roberta, lambda: byte_level(TEXTS)], ids=["bert", "roberta", "bare"])
def ours_and_theirs(request, tmp_path_factory):
    """A tokenizer as ours, and the same as transformers reads it."""
    folder = tmp_path_factory.mktemp("tokenizer")
    request.param().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return load_tokenizer(folder / "tokenizer.json"), AutoTokenizer.from_pretrained(folder)


def written(folder: Path, rows: list[tuple], columns=("text", "label"), name="train.jsonl") -> str:
    file = folder / name
    file.write_text("".join(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows))
    return str(file)


def task(problem="single_label", class_weights="none", **options) -> ClassificationConfig:
    options |= {"problem": Problem(problem), "class_weights": ClassWeights(class_weights)}
    return ClassificationConfig(train="train.jsonl", validation="validation.jsonl", **options)


def encoded(folder: Path, rows: list[tuple], cfg: ClassificationConfig, columns=("text", "label")):
    records = cfg.records(written(folder, rows, columns))
    names = cfg.names(records)
    return cfg.encode(records, bert(), names), names


def assert_equal_to_transformers(cfg, records, ours, theirs):
    """Every sequence of ours has the ids and token types of theirs."""
    examples = cfg.encode(records, ours, ["0", "1"]).examples
    pairs = [record.pair for record in records] if cfg.columns.text_pair else None
    options = {"truncation": "longest_first", "max_length": cfg.max_tokens, "return_token_type_ids": True}
    expected = theirs([record.text for record in records], pairs, **options)
    assert len(examples) == len(records)
    for example, (ids, types) in enumerate(zip(expected["input_ids"], expected["token_type_ids"], strict=True)):
        place = slice(examples.offsets[example], examples.offsets[example + 1])
        assert examples.tokens[place].tolist() == ids
        assert examples.segments[place].tolist() == types


# Without the first characters of special tokens, which are text in a text: that is tested below.
letters = st.text(st.characters(codec="utf-8", exclude_characters="[<"), min_size=1, max_size=5)
words = st.lists(st.sampled_from(" ".join(TEXTS).split()) | letters, max_size=30)
texts = words.map(" ".join).map(lambda text: f"x{text}")


pairs_of_texts = st.lists(st.tuples(texts, texts), min_size=1, max_size=4)


@settings(max_examples=20)
@given(rows=pairs_of_texts, pair=st.booleans(), max_tokens=st.integers(6, 40))
def test_encoding_equals_transformers(ours_and_theirs, rows, pair, max_tokens):
    cfg = task(columns=PAIR if pair else TextColumns(), max_tokens=max_tokens)
    records = [LabelledText(text, other if pair else None, "0", "here") for text, other in rows]
    assert_equal_to_transformers(cfg, records, *ours_and_theirs)


def test_what_is_cut_is_counted_and_the_tokenizer_left_as_it_was(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    cfg, tokenizer = task(max_tokens=8), bert()
    records = cfg.records(written(tmp_path, [("a", 0), (TEXTS[0], 1), (TEXTS[3], 1)]))
    encoding = cfg.encode(records, tokenizer, ["0", "1"])
    assert encoding.examples.lengths.tolist() == [3, 8, 8]
    assert encoding.examples.labels.tolist() == [0, 1, 1]
    assert "2 of 3 texts are longer than task.max_tokens=8: cut" in caplog.text
    assert tokenizer.truncation is None


def test_special_tokens_in_a_text_are_text(tmp_path, ours_and_theirs):
    cfg, (tokenizer, _) = task(), ours_and_theirs
    special = {tokenizer.token_to_id(name) for name in ("[CLS]", "[SEP]", "<s>", "</s>")}

    def count(text: str) -> int:
        records = cfg.records(written(tmp_path, [(text, 0)]))
        return sum(token in special for token in cfg.encode(records, tokenizer, ["0", "1"]).examples.tokens)

    assert count("x [SEP] </s> [CLS] <s>") == count("x")


@pytest.mark.parametrize(("pair", "least"), [(False, 3), (True, 5)])
def test_a_sequence_needs_room_for_text(tmp_path, pair, least):
    columns = PAIR if pair else TextColumns()
    rows = [(TEXTS[0], TEXTS[3], 0)]
    cfg = task(columns=columns, max_tokens=least - 1)
    records = cfg.records(written(tmp_path, rows, ("text", "other", "label")))
    with pytest.raises(ConfigError, match=f"task.max_tokens={least - 1}: must be at least {least}: "):
        cfg.encode(records, bert(), ["0", "1"])
    assert task(columns=columns, max_tokens=least).encode(records, bert(), ["0", "1"]).examples.lengths == [least]


@pytest.mark.parametrize(
    ("answers", "names"),
    [
        ([10, 2, -1, 2], ["-1", "2", "10"]),
        (["10", "2", "x"], ["10", "2", "x"]),
        (["pos", "Neg", "é", "neg"], ["Neg", "neg", "pos", "é"]),
        (["01", "1", "0001", "0", "001"], ["0", "0001", "001", "01", "1"]),
        (["1", "-", "0"], ["-", "0", "1"]),
        (["NA", "None"], ["NA", "None"]),
        ([1.0, 0.0, 10.0, 2.0], ["0", "1", "2", "10"]),
        ([True, False], ["False", "True"]),
    ],
)
def test_labels_have_an_order_of_their_own(tmp_path, answers, names):
    for order in (answers, answers[::-1]):
        records = task().records(written(tmp_path, [(f"text {i}", answer) for i, answer in enumerate(order)]))
        assert task().names(records) == names


def test_labels_may_be_set_and_are_numbered_so(tmp_path):
    cfg = task(labels=["pos", "neg", "neutral"])
    encoding, names = encoded(tmp_path, [("good", "pos"), ("bad", "neg"), ("grand", "pos")], cfg)
    assert names == ["pos", "neg", "neutral"]
    assert encoding.examples.labels.tolist() == [0, 1, 0]


def test_sets_of_labels(tmp_path):
    cfg = task(problem="multi_label", label_separator="|")
    rows = [("a", ["10", 2]), ("b", "2 | 3|"), ("c", []), ("d", ""), ("e", [2])]
    encoding, names = encoded(tmp_path, rows, cfg)
    assert names == ["2", "3", "10"]
    assert [record.label for record in encoding.records] == [("10", "2"), ("2", "3"), (), (), ("2",)]
    assert encoding.examples.labels.tolist() == [[1, 0, 1], [1, 1, 0], [0, 0, 0], [0, 0, 0], [1, 0, 0]]
    assert encoding.examples.labels.dtype == np.int64


def test_numbers(tmp_path):
    encoding, names = encoded(tmp_path, [("a", 1), ("b", "-2.5e-1"), ("c", 0.1)], task(problem="regression"))
    assert names == ["label"]
    assert encoding.examples.labels.dtype == np.float32
    assert encoding.examples.labels.tolist() == [1, -0.25, np.float32(0.1)]


@pytest.mark.parametrize(
    ("problem", "answer", "reason"),
    [
        ("single_label", None, "no label"),
        ("single_label", "", "no label"),
        ("single_label", math.nan, "no label"),
        ("single_label", 0.5, "label is no name"),
        ("single_label", ["a"], "label is no name"),
        ("multi_label", 1, "no list of labels"),
        ("multi_label", None, "no list of labels"),
        ("multi_label", ["a", None], "no label"),
        ("multi_label", "a,b,a", "a label twice .*"),
        ("multi_label", [0, 1, 0], "a label twice .*not a 0 or 1 for each.*"),
        ("regression", math.nan, "number is NaN or infinite"),
        ("regression", "nan", "number is NaN or infinite"),
        ("regression", -math.inf, "number is NaN or infinite"),
        ("regression", 1e39, "number is NaN or infinite"),
        ("regression", 10**400, "label is no number"),
        ("regression", "high", "label is no number"),
        ("regression", [1], "label is no number"),
        ("regression", "", "no number"),
    ],
)
def test_bad_answers_are_counted_and_refused(tmp_path, problem, answer, reason):
    good = {"single_label": "a", "multi_label": ["a"], "regression": 1.0}[problem]
    file = written(tmp_path, [("x", good), ("y", answer), ("z", good)])
    with pytest.raises(DataError, match=rf"1 of 3 records are bad.*task.max_faults=0.*{reason}: 1 \({file}:2: "):
        task(problem=problem).records(file)
    assert [text.text for text in task(problem=problem, max_faults=0.4).records(file)] == ["x", "z"]


@pytest.mark.parametrize(
    ("text", "reason"), [("", "no text"), (" \n", "no text"), (None, "no text"), (7, "text is no string")]
)
def test_bad_texts_are_counted_and_refused(tmp_path, text, reason):
    file = written(tmp_path, [("x", "good", 0), (text, "good", 0), ("good", text, 1)], ("text", "other", "label"))
    with pytest.raises(DataError, match=rf"2 of 3 records are bad.*{reason}: 2 \({file}:2: .*, {file}:3: "):
        task(columns=PAIR).records(file)


def test_faults_of_reading_and_of_meaning_are_counted_together(tmp_path):
    file = tmp_path / "train.csv"
    file.write_text('text,label\na,0\nb\n"",1\nc,1\n')
    with pytest.raises(DataError, match="2 of 4 records are bad"):
        task(max_faults=0.49).records(str(file))
    assert len(task(max_faults=0.5).records(str(file))) == 2


def test_a_label_that_training_does_not_have(tmp_path):
    cfg = task()
    records = cfg.records(written(tmp_path, [("x", "pos"), ("y", "netural"), ("z", "neg")], name="validation.jsonl"))
    with pytest.raises(DataError, match=r"label is none of neg, pos: 1 \(.*validation.jsonl:2: 'netural'\)"):
        cfg.encode(records, bert(), ["neg", "pos"])
    encoding = task(max_faults=0.5).encode(records, bert(), ["neg", "pos"])
    assert [record.text for record in encoding.records] == ["x", "z"]
    assert encoding.examples.labels.tolist() == [1, 0]


def test_a_text_without_a_token_is_a_fault(tmp_path):
    records = task().records(written(tmp_path, [("known", 0), ("文", 1), ("known", 0)]))
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate("know")}, []))
    with pytest.raises(DataError, match=r"no token: 1 \(.*train.jsonl:2: "):
        task().encode(records, tokenizer, ["0", "1"])


@pytest.mark.parametrize(
    ("problem", "answer"), [("single_label", "pos"), ("multi_label", ["a", "b"]), ("regression", 0.5)]
)
def test_examples_of_one_label_are_refused(tmp_path, problem, answer):
    cfg = task(problem=problem)
    records = cfg.records(written(tmp_path, [("a", answer), ("b", answer)]))
    with pytest.raises(DataError, match=r"task.train: all examples have the same label, .*nothing to learn"):
        cfg.names(records)


def test_kept_examples_of_one_label_are_refused(tmp_path):
    cfg = task(labels=["a", "b"], max_faults=0.9)
    records = cfg.records(written(tmp_path, [("one", "a"), ("two", "c"), ("three", "a")]))
    with pytest.raises(DataError, match=r"task.train: all examples have the same label, 'a': there is nothing"):
        cfg.names(records)


def test_the_same_text_with_other_labels_is_logged_with_the_count(tmp_path, caplog):
    rows = [("x", "a"), ("y", "a"), ("x", "a"), ("x", "b"), ("y", "a"), ("z", "c")]
    file = written(tmp_path, rows)
    assert len(task().records(file)) == 6
    assert f"{file}: 3 records have the same text as one with another label" in caplog.text
    assert f"as {file}:1 ('a') and {file}:4 ('b')" in caplog.text
    caplog.clear()
    pairs = written(tmp_path, [("x", "1", "a"), ("x", "2", "b")], ("text", "other", "label"))
    task(columns=PAIR).records(pairs)
    task().records(written(tmp_path, [("x", "a"), ("x", "a")]))
    assert not caplog.records


def test_a_missing_column_is_refused(tmp_path):
    file = written(tmp_path, [("x", 0)], ("text", "lable"))
    with pytest.raises(ConfigError, match=r"task.columns.label=label: .*train.jsonl .*; did you mean lable\?"):
        task().records(file)
    assert task().records(file, labelled=False)[0].label is None


def batch_of(encoding, chosen):
    return encoding.examples.batch(np.array(chosen))


def rows_of(counts: dict[str, int]) -> list[tuple]:
    return [(f"text {name} {i}", name) for name, count in counts.items() for i in range(count)]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", ["none", "balanced"])
def test_loss_of_one_label_is_torchs_with_the_balanced_weights_by_hand(tmp_path, smoothing, weights):
    counts = {"a": 5, "b": 2, "c": 1}
    cfg = task(label_smoothing=smoothing, class_weights=weights)
    encoding, names = encoded(tmp_path, rows_of(counts), cfg)
    batch = batch_of(encoding, [0, 5, 6, 7])
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(3))
    weight = torch.tensor([8 / (3 * count) for count in counts.values()]) if weights == "balanced" else None
    criterion = torch.nn.CrossEntropyLoss(weight, reduction="none", label_smoothing=smoothing, ignore_index=IGNORED)
    total, correct = cfg.loss(encoding, names)(logits, batch)
    torch.testing.assert_close(total, criterion(logits, torch.tensor([0, 1, 1, 2])).sum())
    assert correct == (logits.argmax(1) == torch.tensor([0, 1, 1, 2])).sum()
    if weight is not None:
        assert math.isclose(weight[encoding.examples.labels].mean(), 1, rel_tol=1e-6)


def test_loss_of_sets_of_labels_and_of_numbers_is_torchs(tmp_path):
    logits = torch.randn(3, 2, generator=torch.Generator().manual_seed(3))
    cfg = task(problem="multi_label")
    encoding, names = encoded(tmp_path, [("x", ["a", "b"]), ("y", []), ("z", ["b"])], cfg)
    total, _ = cfg.loss(encoding, names)(logits, batch_of(encoding, [2, 0, 1]))
    targets = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    torch.testing.assert_close(total / 3, torch.nn.BCEWithLogitsLoss()(logits, targets))
    cfg = task(problem="regression")
    encoding, names = encoded(tmp_path, [("x", 1.5), ("y", -2), ("z", 0)], cfg)
    total, _ = cfg.loss(encoding, names)(logits[:, :1], batch_of(encoding, [2, 0, 1]))
    torch.testing.assert_close(total / 3, torch.nn.MSELoss()(logits[:, 0], torch.tensor([0, 1.5, -2])))


def test_balanced_weights_need_an_example_of_each_class(tmp_path):
    cfg = task(labels=["a", "b", "c"], class_weights="balanced")
    encoding, names = encoded(tmp_path, rows_of({"a": 2, "b": 1}), cfg)
    with pytest.raises(ConfigError, match=r"task.class_weights=balanced: no example of the training set has c;"):
        cfg.loss(encoding, names)


LOGITS = [np.array(row, np.float32) for row in ([2.0, -1.0, 0.5], [-30.0, 30.0, 0.0], [0.1, 0.2, 0.3])]


def test_predictions_of_one_label(tmp_path):
    cfg = task()
    encoding, names = encoded(tmp_path, [("x", "a"), ("y", "b"), ("z", "c")], cfg)
    found = list(cfg.predict(encoding, LOGITS, names))
    places = [record.place for record in encoding.records]
    for row, place, logits, label in zip(found, places, LOGITS, ["a", "b", "c"], strict=True):
        powers = [math.exp(value) for value in logits.tolist()]
        expected = dict(zip(names, [power / sum(powers) for power in powers], strict=True))
        assert row == {
            "place": place,
            "label": label,
            "score": pytest.approx(expected[label]),
            "probabilities": pytest.approx(expected),
        }
    json.dumps(found)
    assert cfg.measure(encoding, LOGITS, names)["accuracy"] == 1
    assert cfg.measure(encoding, LOGITS[:1] * 3, names)["accuracy"] == pytest.approx(1 / 3)


def test_predictions_of_sets_of_labels(tmp_path):
    cfg = task(problem="multi_label")
    encoding, names = encoded(tmp_path, [("x", ["a", "c"]), ("y", ["b"]), ("z", [])], cfg)
    found = list(cfg.predict(encoding, LOGITS, names))
    assert [row["labels"] for row in found] == [["a", "c"], ["b"], ["a", "b", "c"]]
    for row, logits in zip(found, LOGITS, strict=True):
        expected = dict(zip(names, [1 / (1 + math.exp(-value)) for value in logits.tolist()], strict=True))
        assert row["probabilities"] == pytest.approx(expected, rel=1e-12)
        assert row["scores"] == [row["probabilities"][name] for name in row["labels"]]
    json.dumps(found)
    measured = cfg.measure(encoding, LOGITS, names)
    assert measured["accuracy"] == pytest.approx(2 / 3)
    assert measured["f1_micro"] == pytest.approx(2 * 3 / (3 + 6))


def test_predictions_of_numbers(tmp_path):
    cfg = task(problem="regression")
    encoding, names = encoded(tmp_path, [("x", 1.0), ("y", 2.0), ("z", 9.0)], cfg)
    logits = [np.array([value], np.float32) for value in (0.5, 0.25, 3.0)]
    found = [(row.pop("place"), row) for row in cfg.predict(encoding, logits, names)]
    places = [record.place for record in encoding.records]
    assert found == list(zip(places, [{"score": 0.5}, {"score": 0.25}, {"score": 3.0}], strict=True))
    assert cfg.measure(encoding, logits, names)["spearman"] == pytest.approx(0.5)


def test_answers_of_texts_whose_labels_are_not_known(tmp_path):
    cfg = task()
    records = cfg.records(written(tmp_path, [("x",), ("y",)], ("text",)), labelled=False)
    encoding = cfg.encode(records, bert(), ["a", "b", "c"])
    assert encoding.examples.labels is None
    assert [row["label"] for row in cfg.predict(encoding, LOGITS[:2], ["a", "b", "c"])] == ["a", "b"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "f2"}, "task.metric=f2: must be one of accuracy, f1, f1_macro, f1_micro, matthews"),
        ({"metric": "mse", "problem": "regression"}, "task.metric=mse: must be one of spearman, pearson"),
        ({"max_tokens": 0}, "task.max_tokens=0: must be above 0"),
        ({"max_faults": 1.0}, "task.max_faults=1.0: "),
        ({"label_smoothing": 1.0}, "task.label_smoothing=1.0: "),
        ({"label_smoothing": 0.1, "problem": "multi_label"}, "task.label_smoothing=0.1: is for task.problem="),
        ({"class_weights": "balanced", "problem": "regression"}, "task.class_weights=balanced: is for task.problem="),
        ({"labels": ["a", "b"], "problem": "regression"}, "task.labels=.*: numbers have no labels"),
        ({"labels": ["a", "a"]}, "task.labels=.*: must differ"),
        ({"labels": ["a"]}, "task.labels=.*: name at least two, or none"),
        ({"label_separator": ""}, "task.label_separator='': must not be empty"),
    ],
)
def test_refused_settings(options, message):
    with pytest.raises(ConfigError, match=message):
        task(**options)


def test_settings_as_they_are_composed():
    node = OmegaConf.structured(ClassificationConfig)
    given = {"train": "a", "validation": "b", "labels": [0, 1], "columns": {"text": "sentence"}, "metric": "f1"}
    cfg = typed(OmegaConf.merge(node, given))
    assert (cfg.labels, cfg.columns, cfg.metric) == (["0", "1"], TextColumns(text="sentence"), "f1")
    for problem, metric in (("single_label", "accuracy"), ("multi_label", "f1_macro"), ("regression", "spearman")):
        assert typed(OmegaConf.merge(node, {"train": "a", "validation": "b", "problem": problem})).metric == metric
    with pytest.raises(ConfigError, match="validation: required and not given"):
        typed(OmegaConf.merge(node, {"train": "a"}))


def test_f1_of_label_1_is_for_two_labels(tmp_path):
    cfg = task(metric="f1")
    with pytest.raises(ConfigError, match=r"task.metric=f1: is for two labels, there are 3; choose f1_macro"):
        encoded(tmp_path, [("x", "a"), ("y", "b"), ("z", "c")], cfg)


def with_classes(folder: Path, labels: list, names: list[str], name="train.parquet", many=False) -> str:
    """A Parquet file whose labels, or lists of them, are numbers of named classes."""
    kind = ClassLabel(names=names)
    features = Features(text=Value("string"), label=Sequence(kind) if many else kind)
    rows = {"text": [f"text {number}" for number in range(len(labels))], "label": labels}
    file = folder / name
    Dataset.from_dict(rows, features=features).to_parquet(file)
    return str(file)


def test_classes_that_the_data_set_names_are_the_labels_in_its_order(tmp_path):
    records = task().records(with_classes(tmp_path, [1, 0, 1], ["pos", "neg", "neutral"]))
    assert [record.label for record in records] == ["neg", "pos", "neg"]
    names = task().names(records)
    assert names == ["pos", "neg", "neutral"], "also one that no example has"
    assert task().encode(records, bert(), names).examples.labels.tolist() == [1, 0, 1]
    several = task(problem="multi_label")
    records = several.records(with_classes(tmp_path, [[1, 0], [], [1]], ["z", "a", "b"], many=True))
    assert [record.label for record in records] == [("a", "z"), (), ("a",)]
    assert several.names(records) == ["z", "a", "b"]
    assert several.encode(records, bert(), ["z", "a", "b"]).examples.labels.tolist() == [[1, 1, 0], [0] * 3, [0, 1, 0]]
    chosen = task(labels=["neg", "pos"])
    assert chosen.names(chosen.records(with_classes(tmp_path, [1, 0], ["pos", "neg"]))) == ["neg", "pos"]


def test_a_class_of_minus_one_is_no_label(tmp_path):
    file = with_classes(tmp_path, [0, 1, -1, 1], ["a", "b"])
    with pytest.raises(DataError, match=r"1 of 4 records are bad.*no label: 1 \(.*train.parquet, row 2: None\)"):
        task().records(file)
    assert [record.label for record in task(max_faults=0.3).records(file)] == ["a", "b", "b"]
    assert len(task().records(file, labelled=False)) == 4
    with pytest.raises(DataError, match="4 of 4 records are bad"):
        task(max_faults=0.9).records(with_classes(tmp_path, [-1] * 4, ["a", "b"]))


def test_classes_of_other_names_are_refused_with_both(tmp_path):
    cfg = task()
    names = cfg.names(cfg.records(with_classes(tmp_path, [0, 1], ["neg", "pos"])))
    others = cfg.records(with_classes(tmp_path, [0, 1], ["negative", "positive"], "validation.parquet"))
    rule = "the names of its classes are negative, positive, but those of task.train=train.jsonl are neg, pos"
    with pytest.raises(DataError, match=f"validation.parquet, row 0: {rule}"):
        cfg.encode(others, bert(), names)
    turned = cfg.records(with_classes(tmp_path, [0, 1], ["pos", "neg"], "validation.parquet"))
    assert cfg.encode(turned, bert(), names).examples.labels.tolist() == [1, 0], "each by its name"
    plain = cfg.records(written(tmp_path, [("x", 0), ("y", 1)]))
    with pytest.raises(DataError, match=r"label is none of neg, pos: 2 \(.*'0'"):
        cfg.encode(plain, bert(), names)
    with pytest.raises(DataError, match=r"classes are pos, neg, but those of task.train=train.jsonl are 0, 1;"):
        cfg.encode(turned, bert(), cfg.names(plain))


def test_integers_are_indices_of_the_labels_that_are_set(tmp_path):
    for answers in ([1, 0, 1], [1.0, 0.0, 1.0], [1, "neg", "pos"]):
        rows = [(f"text {number}", answer) for number, answer in enumerate(answers)]
        assert [record.label for record in task(labels=["neg", "pos"]).records(written(tmp_path, rows))] == [
            *("pos", "neg", "pos")
        ]
    cfg = task(labels=["1", "0"])
    assert [record.label for record in cfg.records(written(tmp_path, [("x", 1), ("y", 0)]))] == ["1", "0"]
    records = task(labels=["neg", "pos"]).records(written(tmp_path, [("x", 2), ("y", -1)]))
    assert [record.label for record in records] == ["2", "-1"], "which are none of them"
    several = task(problem="multi_label", labels=["a", "b", "c"])
    assert several.records(written(tmp_path, [("x", [2, 0])]))[0].label == ("a", "c")


shared_data = pytest.mark.skipif(
    "HEADWATER_DATA" not in os.environ, reason="HEADWATER_DATA names no folder of real data"
)


def uncased() -> tuple[Tokenizer, AutoTokenizer]:
    folder = Path(os.environ["HEADWATER_DATA"]) / "bert-uncased-tokenizer"
    return load_tokenizer(folder / "tokenizer.json"), AutoTokenizer.from_pretrained(folder)


@pytest.mark.shared_data
@shared_data
def test_sst2_and_ag_news_encode_as_transformers_encode_them():
    data = Path(os.environ["HEADWATER_DATA"])
    cfg = task(columns=TextColumns(text="sentence"), max_tokens=24)
    records = cfg.records(str(data / "sst2" / "dev.tsv"))
    assert cfg.names(records) == ["0", "1"]
    assert_equal_to_transformers(cfg, records, *uncased())
    header = ["class", "title", "description"]
    columns = TextColumns(text="title", text_pair="description", label="class")
    cfg = task(columns=columns, header=header, max_tokens=40)
    records = cfg.records(str(data / "ag_news" / "test.csv"))
    assert cfg.names(records) == ["1", "2", "3", "4"]
    records = [record._replace(label="0") for record in records[:2000]]
    assert_equal_to_transformers(cfg, records, *uncased())


@pytest.mark.shared_data
@shared_data
def test_long_reviews_are_cut_as_transformers_cut_them(tmp_path):
    rows = []
    with tarfile.open(Path(os.environ["HEADWATER_DATA"]) / "imdb" / "aclImdb_labelled.tar.xz") as archive:
        while len(rows) < 300 and (member := archive.next()):
            if member.isfile():
                rows.append((archive.extractfile(member).read().decode(), member.name.split("/")[2] == "pos"))
    cfg = task(max_tokens=128)
    records = [record._replace(label="1") for record in cfg.records(written(tmp_path, rows))]
    assert_equal_to_transformers(cfg, records, *uncased())


def test_labels_that_no_record_has_are_named(tmp_path):
    rows = [("a", "0"), ("b", "1")]
    with pytest.raises(ConfigError, match=r"task.labels=no, yes: must be among those of the training set, 0, 1"):
        encoded(tmp_path, rows, task(labels=["no", "yes"]))


def test_grades_with_names_are_numbers_for_regression(tmp_path):
    for names, expected in ((["bad", "fair", "good"], [2.0, 0.0, 1.0]), (["10", "20", "30"], [30.0, 10.0, 20.0])):
        features = Features(text=Value("string"), label=ClassLabel(names=names))
        rows = Dataset.from_dict({"text": ["a", "b", "c"], "label": [2, 0, 1]}, features=features)
        rows.to_parquet(tmp_path / "grades.parquet")
        records = task("regression").records(str(tmp_path / "grades.parquet"))
        assert [record.label for record in records] == expected


@pytest.mark.parametrize("cell", ["['joy', 'anger']", "[]", "[1, 2]", '["joy"]'])
def test_a_printed_list_is_no_set_of_labels(tmp_path, cell):
    with pytest.raises(DataError, match=r"a printed list"):
        encoded(tmp_path, [("a", cell), ("b", "joy"), ("c", "[x] y")], task("multi_label"))

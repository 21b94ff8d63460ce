"""A fine-tuned run measures, predicts and exports what it learnt: the pipelines of transformers give its answers."""

import hashlib
import itertools
import json
import math

import numpy as np
import pytest
import torch
from corpora import edit_json
from finetuned_runs import SOURCES, WORDS, texts, trained, write
from peft import PeftModel
from run_directories import TEXTS, json_of
from tokenizers import processors
from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification, AutoTokenizer, pipeline

from finetune.config import FINETUNE
from finetune.evaluate import main as evaluate
from finetune.export import main as export
from finetune.predict import main as predict
from finetune.run import finetune
from finetune.trained import load
from pretrain.compose import compose
from pretrain.errors import DataError, NumericalError
from pretrain.export import main as pretrain_export
from pretrain.tokenizer.base import load_tokenizer
from pretrain.tokenizer.bpe import BpeTokenizer


def lines(capsys):
    return [json.loads(line, parse_constant=pytest.fail) for line in capsys.readouterr().out.splitlines()]


def said(capsys, command, *arguments):
    """Return the lines of JSON that a command prints."""
    capsys.readouterr()
    assert command([*map(str, arguments)]) == 0
    return lines(capsys)


@pytest.mark.parametrize(
    ("source", "tuning"), [*((source, "full") for source in SOURCES), ("bert", "lora"), ("llama", "lora")]
)
def test_labels_of_texts(tmp_path, capsys, source, tuning):
    records = [{"text": text, "label": word} for text, word in texts(23)]
    records.append({"text": " ".join(WORDS * 8), "label": "time"})  # longer than task.max_tokens
    records.append({"text": "the [SEP] time </s> way <|endoftext|> year", "label": "time"})
    run, data = trained(tmp_path, source, "classification", records, f"tuning={tuning}")
    capsys.readouterr()
    assert predict([str(run), str(data)]) == 0
    ours = lines(capsys)
    assert evaluate([str(run), str(data)]) == 0
    [measured] = lines(capsys)
    right = [one["label"] == record["label"] for one, record in zip(ours, records, strict=True)]
    assert measured["accuracy"] == pytest.approx(sum(right) / len(right))
    last = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
    assert last["split"] == "validation" and last["accuracy"] == pytest.approx(measured["accuracy"])
    assert export([str(run)]) == 0
    assert json_of(run / "export" / "config.json")["model_type"] == source.removesuffix(", mup")
    theirs = pipeline("text-classification", model=str(run / "export"), top_k=None)
    together = theirs([record["text"] for record in records], truncation=True, batch_size=4)
    for found, one in zip(together, ours, strict=True):
        scores = {answer["label"]: answer["score"] for answer in found}
        assert scores == pytest.approx(one["probabilities"], abs=1e-5)


def test_a_run_says_at_its_start_that_transformers_has_no_class_for_its_head(tmp_path, capsys, caplog, monkeypatch):
    settings = [*SOURCES["llama"]["settings"], "model.order=output", "model.qk_norm=projection"]
    monkeypatch.setitem(SOURCES, "olmo2", SOURCES["llama"] | {"settings": settings})
    records = [
        {"words": text.split(), "tags": ["O" if word == "the" else "B-X" for word in text.split()]}
        for text, _ in texts(9)
    ]
    run, data = trained(tmp_path, "olmo2", "tokens", records)
    assert len(said(capsys, predict, run, data)) == len(records)
    assert len(said(capsys, evaluate, run, data)) == 1
    assert export([str(run)]) == 2
    refusal = capsys.readouterr().err.strip()
    assert refusal == "transformers has no Olmo2ForTokenClassification: this model cannot be exported"
    assert f"python -m finetune.export will refuse this run: {refusal}" in caplog.messages


def forget_tokenizer(run):
    """Make a run one of a version whose steps did not say of which tokenizer they are."""
    edit_json(run / "run.json", lambda record: record.pop("steps"))
    for step in (run / "checkpoints").iterdir():
        edit_json(step / "state.json", lambda state: state["resume"].pop("tokenizer"))
        state = (step / "state.json").read_bytes()
        listed = {"size": len(state), "sha256": hashlib.sha256(state).hexdigest()}
        edit_json(step / "manifest.json", lambda manifest, own=listed: manifest["files"].update({"state.json": own}))


def test_a_token_that_texts_end_with_fills_no_batch(tmp_path):
    """Its place is where the label is read."""
    records = [{"text": text, "label": word} for text, word in texts(9)]
    run, _ = trained(tmp_path, "gpt2", "classification", records)
    assert export([str(run)]) == 0
    padding = json_of(run / "export" / "tokenizer_config.json")["pad_token"]
    tokenizer = load_tokenizer(run / "tokenizer.json")
    ids = [(padding, tokenizer.token_to_id(padding))]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{padding} $A {padding}", special_tokens=ids)
    tokenizer.save(str(run / "tokenizer.json"))
    forget_tokenizer(run)
    assert export([str(run)]) == 0
    assert "pad_token" not in json_of(run / "export" / "tokenizer_config.json")


def test_numbers_of_pairs(tmp_path, capsys):
    records = [
        {"text": text, "other": other, "score": len(text) / 10 - 1}
        for (text, _), (other, _) in zip(texts(20), texts(25)[5:], strict=True)
    ]
    columns = ["task.columns.text_pair=other", "task.columns.label=score", "task.problem=regression"]
    run, data = trained(tmp_path, "bert", "classification", records, *columns)
    capsys.readouterr()
    assert predict([str(run), str(data)]) == 0
    ours = lines(capsys)
    assert export([str(run)]) == 0
    theirs = pipeline("text-classification", model=str(run / "export"))
    for record, one in zip(records, ours, strict=True):
        found = theirs({"text": record["text"], "text_pair": record["other"]})
        assert found["score"] == pytest.approx(one["score"], abs=1e-5)


@pytest.mark.parametrize("source", ["bert", "modernbert", "llama"])
def test_answers_in_texts(tmp_path, capsys, source):
    contexts = [" ".join(text for text, _ in texts(place % 4 + 2)) for place in range(18)]
    records = [
        {
            "id": str(place),
            "question": "the year",
            "context": context,
            "answers": {"text": ["the"], "answer_start": [0]},
        }
        for place, context in enumerate(contexts)
    ]
    windows = ["task.stride=4", "task.max_question_tokens=6"]
    run, data = trained(tmp_path, source, "qa", records, *windows)
    capsys.readouterr()
    assert predict([str(run), str(data)]) == 0
    for one, context in zip(lines(capsys), contexts, strict=True):
        assert one["answer"] == context[one["start"] : one["end"]] != ""
    assert export([str(run)]) == 0
    theirs, report = AutoModelForQuestionAnswering.from_pretrained(run / "export", output_loading_info=True)
    assert not any(report.values())
    opened = load(run)  # transformers 5 has no pipeline for questions: compare what answers are found by
    encoded = opened.encode(str(data), labelled=True)
    bounds = itertools.pairwise(encoded.examples.offsets)
    for (begin, end), logits in zip(bounds, opened.answers(encoded, 64).each, strict=True):
        segments = {"token_type_ids": as_row(encoded.examples.segments[begin:end])} if source == "bert" else {}
        found = theirs(as_row(encoded.examples.tokens[begin:end]), **segments)
        expected = torch.stack([found.start_logits[0], found.end_logits[0]], dim=1)
        torch.testing.assert_close(torch.from_numpy(logits), expected, atol=1e-5, rtol=1e-5)


def as_row(values):
    return torch.from_numpy(values.astype(np.int64))[None]


@pytest.mark.parametrize("source", ["bert", "roberta", "gpt2"])
def test_tags_of_words(tmp_path, capsys, source):
    rows = [text.split() for text, _ in texts(21)]
    records = [{"words": row, "tags": ["B-X" if word in WORDS[:3] else "O" for word in row]} for row in rows]
    run, data = trained(tmp_path, source, "tokens", records)
    capsys.readouterr()
    assert predict([str(run), str(data)]) == 0
    ours = lines(capsys)
    assert export([str(run)]) == 0
    theirs = pipeline("token-classification", model=str(run / "export"), ignore_labels=[])
    for row, one in zip(rows, ours, strict=True):
        text = " ".join(row)
        starts = [len(" ".join(row[:place])) + (place > 0) for place in range(len(row))]
        begins = {answer["start"] + (text[answer["start"]] == " "): answer for answer in theirs(text)}
        found = [begins[start] for start in starts]
        assert [answer["entity"] for answer in found] == one["tags"]
        assert [answer["score"] for answer in found] == pytest.approx(one["scores"], abs=1e-5)


@pytest.mark.parametrize("same", [True, False], ids=["same-names", "other-names"])
def test_a_run_starts_from_the_best_step_of_another(tmp_path, capsys, caplog, same):
    """With the same outputs it is the same model, adapters added to their matrices; with others its head is new."""
    caplog.set_level("INFO")
    records = [{"text": text, "label": word} for text, word in texts(23)]
    more = ["tuning=lora", "tuning.rank=3", "eval.every=1", "optim.lr=0.05", "checkpoint.keep=1"]
    first, data = trained(tmp_path, "bert", "classification", records, *more)
    capsys.readouterr()
    assert predict([str(first), str(data)]) == 0
    expected = lines(capsys)
    if not same:
        data = write(tmp_path / "other.jsonl", [{**one, "label": f"{one['label']}s"} for one in records])
    tuned = [f"init_from={first}", f"task.train={data}", f"task.validation={data}", "task.max_tokens=32"]
    still = ["optim.lr=1e-30", "run.name=again", f"run.root={tmp_path}", "tracker.progress=false"]
    caplog.clear()
    finetune(compose(["task=classification", *tuned, *still, "train.epochs=0.1"], root=FINETUNE))
    capsys.readouterr()
    assert predict([str(tmp_path / "again"), str(data)]) == 0
    found = lines(capsys)
    names = {name for name, _ in load(tmp_path / "again").module.named_parameters()}
    assert not any("lora" in name for name in names)
    said = [record.getMessage() for record in caplog.records if "get initial values" in record.getMessage()]
    if same:
        assert not said
        for one, other in zip(found, expected, strict=True):
            assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-6)
    else:
        assert said == ["head.classifier.weight, head.classifier.bias get initial values"]


def test_adapters_are_exported_for_peft_and_learn_on(tmp_path, capsys, caplog):
    caplog.set_level("INFO")
    records = [{"text": text, "label": word} for text, word in texts(23)]
    lora = ["tuning=lora", "tuning.rank=3", "tuning.layers=[q,v,down]"]
    run, data = trained(tmp_path, "bert", "classification", records, *lora, "optim.lr=0.05")
    assert export([str(run)]) == export([str(run), "--adapters"]) == pretrain_export([str(tmp_path / "source")]) == 0
    assert f"{tmp_path / 'source'} is a run: to use the adapters with peft, export it" in caplog.text
    merged = AutoModelForSequenceClassification.from_pretrained(run / "export")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "source" / "export", num_labels=8)
    theirs = PeftModel.from_pretrained(base, run / "adapters").eval()
    inputs = AutoTokenizer.from_pretrained(run / "adapters")(["the time", "way"], padding=True, return_tensors="pt")
    torch.testing.assert_close(theirs(**inputs).logits, merged(**inputs).logits, rtol=1e-5, atol=1e-5)
    card = (run / "adapters" / "README.md").read_text()
    assert "library_name: peft" in card and "import BertForSequenceClassification" in card and "num_labels=8" in card

    again = [f"init_from={run / 'adapters'}", f"task.train={data}", f"task.validation={data}", "task.max_tokens=32"]
    still = ["optim.lr=1e-30", "run.name=again", f"run.root={tmp_path}", "tracker.progress=false", "train.epochs=0.1"]
    finetune(compose(["task=classification", *again, *still, *lora], root=FINETUNE))
    assert "the adapters go on from those of" in caplog.text
    first, second = (dict(load(place).module.named_parameters()) for place in (run, tmp_path / "again"))
    assert all(torch.equal(first[name], second[name]) for name in first if "classifier" not in name)
    assert json_of(tmp_path / "again" / "run.json")["base"] == str(tmp_path / "source")


@pytest.mark.parametrize(
    ("source", "settings", "rule"),
    [
        ("gpt2", [], "--adapters: the run has none, only tuning=lora learns some; leave it out"),
        ("gpt2", ["tuning=lora", "scratch=true"], "--adapters: the weights below the adapters lie in this run alone"),
        ("llama, mup", ["tuning=lora"], "model.mup_base_width=16: an export has its factors in the weights"),
    ],
)
def test_adapters_that_no_base_knows_are_not_exported(tmp_path, capsys, source, settings, rule):
    records = [{"text": text, "label": word} for text, word in texts(23)]
    run, _ = trained(tmp_path, source, "classification", records, *settings)
    assert export([str(run), "--adapters"]) == 2
    assert rule in capsys.readouterr().err
    assert not (run / "adapters").exists()


def test_standard_input_and_refusals(tmp_path, capsys, monkeypatch):
    records = [{"text": text, "label": word} for text, word in texts(12)]
    run, data = trained(tmp_path, "bert", "classification", records)
    capsys.readouterr()
    assert predict([str(run), str(data)]) == 0
    expected = lines(capsys)
    assert [one["place"] for one in expected] == [f"{data}:{line}" for line in range(1, 13)]
    data.write_bytes(data.read_bytes().replace(b"\n", b"\n\n{}\n", 1))
    for arguments, code in (([], 3), (["--set", "task.max_faults=0.1"], 0)):
        with data.open("rb") as stream:
            monkeypatch.setattr("sys.stdin", type("Stdin", (), {"buffer": stream}))
            assert predict([str(run), *arguments]) == code
            assert not stream.closed
        if code:
            assert "-: 1 of 13 records are bad" in capsys.readouterr().err
    places = [f"-:{line}" for line in (1, *range(4, 15))]  # of lines 2 and 3 one is blank and one bad
    assert lines(capsys) == [{**one, "place": place} for one, place in zip(expected, places, strict=True)]
    assert predict([str(run), str(tmp_path / "nowhere.jsonl")]) == 2
    assert "nowhere.jsonl" in capsys.readouterr().err
    assert predict([str(tmp_path), str(data)]) == 2
    assert predict([str(run), str(data), "--step", "5"]) == 4
    assert "step-00000005" in capsys.readouterr().err


@pytest.mark.parametrize("split", ["train", "validation"])
def test_data_without_a_single_token_are_refused(tmp_path, split):
    tagged = [{"words": ["the", text], "tags": ["O", "B-X"]} for text, _ in texts(6)]
    (tmp_path / "odd.jsonl").write_text('{"words": ["\\u0001"], "tags": ["B-X"]}\n')
    with pytest.raises(DataError, match=rf"task.{split}=.*odd.jsonl: the tokenizer has no token for any of its words"):
        trained(tmp_path, "bert", "tokens", tagged, f"task.{split}={tmp_path / 'odd.jsonl'}")


def test_a_foreign_tokenizer_and_outputs_that_are_not_finite_are_refused(tmp_path, capsys):
    run, data = trained(tmp_path, "bert", "classification", [{"text": text, "label": word} for text, word in texts(12)])
    opened = load(run)
    encoded = opened.encode(str(data), labelled=True)
    opened.module.get_parameter("head.classifier.bias").data[1] = math.nan
    with pytest.raises(NumericalError, match=f"{len(encoded.examples)} of 12 outputs of the model are not finite"):
        opened.answers(encoded, 64)
    (run / "tokenizer.json").write_text(BpeTokenizer(vocab_size=299).train(iter(TEXTS)))
    capsys.readouterr()
    assert predict([str(run), str(data)]) == 3
    assert "tokenizer.json: another tokenizer" in capsys.readouterr().err
    forget_tokenizer(run)
    assert predict([str(run), str(data)]) == 2
    assert "tokenizer.json: of another vocabulary" in capsys.readouterr().err


def test_numbers_that_json_does_not_have(tmp_path, capsys):
    records = [{"text": text, "label": len(text) / 10} for text, _ in texts(12)]
    run, _ = trained(tmp_path, "bert", "classification", records, "task.problem=regression")
    one = write(tmp_path / "one.jsonl", records[:1])
    [measured] = said(capsys, evaluate, run, one)
    assert measured["pearson"] == measured["spearman"] == "NaN"


def test_places_of_sentences(tmp_path, capsys):
    rows = [text.split() for text, _ in texts(15)]
    records = [{"words": row, "tags": ["B-X" if word in WORDS[:3] else "O" for word in row]} for row in rows]
    run, _ = trained(tmp_path, "bert", "tokens", records)
    file = tmp_path / "words.conll"
    file.write_text("the O\ntime O\n\nthe O\nyear\n\nthe O\n")
    found = said(capsys, predict, run, file, "--set", "task.max_faults=0.5")
    assert [(one["place"], one["words"]) for one in found] == [(f"{file}:1", ["the", "time"]), (f"{file}:7", ["the"])]

"""The card of an export: what the hub reads of it, the code in it, and a licence that is never guessed."""

import json
import logging
import re
from pathlib import Path

import pytest
import yaml
from finetuned_runs import texts, trained
from huggingface_hub import ModelCard
from run_directories import GPT2_SETTINGS, LLAMA_SETTINGS, json_of, make_run, word_pieces

from finetune.export import main as finetune_export
from pretrain.checkpoint.load import load_state
from pretrain.data.manifest import Manifest
from pretrain.export import main
from pretrain.files import hash_file, sealed
from pretrain.hub.model_card import licence_of


def card_of(export):
    return ModelCard.load(export / "README.md")


def run_code(export, monkeypatch):
    """Run the example of a card where it says that it can be run."""
    monkeypatch.chdir(export)
    [code] = re.findall(r"```python\n(.*?)```", (export / "README.md").read_text(), re.DOTALL)
    exec(code, {})


def note(run, **facts):
    """Add to a run's record what its trainer would have."""
    record = json_of(run / "run.json")
    record.pop("sha256")
    (run / "run.json").write_bytes(sealed(record | facts))


@pytest.mark.parametrize(
    ("model", "settings", "tokenizer", "task"),
    [
        ("decoder", GPT2_SETTINGS, None, "text-generation"),
        ("decoder", LLAMA_SETTINGS, None, "text-generation"),
        ("encoder", ["model.init_std=0.3"], word_pieces(), "fill-mask"),
    ],
)
def test_the_card_of_a_pretrained_model(tmp_path, monkeypatch, capsys, model, settings, tokenizer, task):
    run = make_run(tmp_path / "own", *settings, "optim.lr=0.125", model=model, tokenizer=tokenizer)
    rows = [
        {"step": step, "split": "validation", "tokens": 5, "loss": step / 2, "accuracy": "NaN"} for step in (6, 7, 8)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    note(run, parameters=12345)
    assert main([str(run)]) == 0
    card = card_of(run / "export")
    data = card.data.to_dict()
    assert (data["library_name"], data["pipeline_tag"], data["license"]) == ("transformers", task, "unknown")
    assert data["tags"] == ["headwater", json_of(run / "export" / "config.json")["model_type"]]
    [result] = card.data.eval_results
    assert (result.metric_type, result.metric_value) == ("loss", 3.5), "of the step that was exported, and finite"
    assert "of 12,345 parameters, pretrained from scratch with Headwater" in card.text
    assert "| learning rate | 0.125 |" in card.text and "Unknown: set `license`" in card.text
    capsys.readouterr()
    run_code(run / "export", monkeypatch)
    assert capsys.readouterr().out.strip()


def test_data_is_named_by_its_hash_and_only_if_it_is_that(place, uninterrupted, tmp_path, monkeypatch):
    monkeypatch.chdir(place)
    assert main([str(uninterrupted), "--out", str(tmp_path / "a")]) == 0
    [(name, corpus)] = json_of(uninterrupted / "run.json")["corpora"].items()
    manifest = Manifest.load(Path(corpus))
    line = f"| {name} | train | {manifest.splits['train'].documents:,} | {manifest.splits['train'].tokens:,} |"
    assert f"{line} {manifest.fingerprint} |" in card_of(tmp_path / "a").text
    record = json_of(uninterrupted / "run.json")
    monkeypatch.setattr("pretrain.trained.source.read_record", lambda *_: record | {"corpora": {name: str(tmp_path)}})
    assert main([str(uninterrupted), "--out", str(tmp_path / "b")]) == 0
    assert f"| {name} | all | - | - | {manifest.fingerprint[:16]} (first digits) |" in card_of(tmp_path / "b").text


PLACES = ["time", "way", "state", "world", "year", "life"]
ANSWERS = [
    {"id": word, "context": f"the {word} of", "question": "who", "answers": {"text": [word], "answer_start": [4]}}
    for word in PLACES
]
TAGS = [{"words": ["the", word], "tags": ["O", "B-X"]} for word in PLACES]


@pytest.mark.parametrize(
    ("source", "task", "records", "tag"),
    [
        ("bert", "classification", [{"text": text, "label": word} for text, word in texts(9)], "text-classification"),
        pytest.param("gpt2", "qa", ANSWERS, "question-answering", marks=pytest.mark.slow),
        pytest.param("modernbert", "tokens", TAGS, "token-classification", marks=pytest.mark.slow),
    ],
)
def test_the_card_of_a_fine_tuned_model(tmp_path, monkeypatch, capsys, source, task, records, tag):
    windows = ["task.stride=4", "task.max_question_tokens=8"] if task == "qa" else []
    run, data = trained(tmp_path, source, task, records, *windows)
    assert finetune_export([str(run)]) == 0
    card = card_of(run / "export")
    step = json_of(run / "export" / "export.json")["step"]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    [measured] = [row for row in rows if row["split"] == "validation" and row["step"] == step]
    values = {result.metric_name: result.metric_value for result in card.data.eval_results}
    expected = {key: measured[key] for key in measured if isinstance(measured[key], float) and "/" not in key}
    assert card.data.pipeline_tag == tag and values == expected
    digest = load_state(run / "checkpoints" / f"step-{step:08d}")["resume"]["the training set"]
    assert f"| {data} | training | {len(records)} | - | {digest} (first digits) |" in card.text
    assert f"fine-tuned from `{tmp_path / 'source'}`" in card.text
    capsys.readouterr()
    run_code(run / "export", monkeypatch)
    assert capsys.readouterr().out.strip()


def write_source(folder, front=None, licence=None, **record):
    folder.mkdir()
    if front is not None:
        (folder / "README.md").write_text(f"---\n{yaml.safe_dump(front)}---\n\n# A model\n")
    if licence:
        (folder / "LICENSE").write_text(licence)
    if record:
        (folder / "run.json").write_bytes(sealed(record))
    return str(folder)


def test_a_licence_is_what_a_file_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    released = write_source(tmp_path / "released", {"license": "mit", "base_model": "org/first"}, "text")
    found = licence_of(released)
    assert (found.licence, found.file, found.base_model) == ("mit", None, "org/first")
    run = write_source(tmp_path / "run", init_from=released)
    export = write_source(tmp_path / "run" / "export", {"license": "unknown"})
    assert licence_of(run) == licence_of(export) == found, "through the runs in between"
    only_file = write_source(tmp_path / "file", {"tags": ["x"]}, "text")
    assert licence_of(only_file).file == Path(only_file) / "LICENSE" and licence_of(only_file).licence is None
    for name, front in {"none": None, "list": ["mit"], "number": {"license": 3}, "empty": {}}.items():
        assert licence_of(write_source(tmp_path / name, front)).licence is None, name
    (tmp_path / "empty" / "README.md").write_text("---\nlicense: [\n---\n")
    assert licence_of(str(tmp_path / "empty")).licence is None
    write_source(tmp_path / "circle", init_from=str(tmp_path / "circle"))
    for source in (None, "runs/gone", str(tmp_path / "circle")):
        assert licence_of(source).licence is None and licence_of(source).base_model is None
    cached = "a" * 40
    assert licence_of(f"org/model@{cached}").base_model == "org/model"


def test_the_licence_of_the_source_goes_along(tmp_path):
    source = write_source(tmp_path / "source", {"license": "cc-by-4.0", "base_model": "org/first"})
    run = make_run(tmp_path / "own", *GPT2_SETTINGS)
    note(run, init_from=source)
    assert main([str(run)]) == 0
    data = card_of(run / "export").data
    assert (data.license, data.base_model) == ("cc-by-4.0", "org/first")
    (tmp_path / "source" / "README.md").unlink()
    (tmp_path / "source" / "LICENSE").write_text("Do as you like.\n")
    assert main([str(run)]) == 0
    data = card_of(run / "export").data
    assert (data.license, data.license_link) == ("other", "LICENSE")
    assert (run / "export" / "LICENSE").read_text() == "Do as you like.\n"


def test_a_card_that_was_edited_stays(tmp_path, caplog):
    run = make_run(tmp_path / "own", *GPT2_SETTINGS)
    caplog.set_level(logging.WARNING)
    for _ in range(2):
        assert main([str(run)]) == 0
    card, new = run / "export" / "README.md", run / "export" / "README.new.md"
    assert not new.exists() and not caplog.records
    assert json_of(run / "export" / "export.json")["card"] == hash_file(card)
    written = card.read_text()
    card.write_text(written + "\nMine.\n")
    for _ in range(2):
        assert main([str(run), "--overwrite"]) == 0
        assert card.read_text() == written + "\nMine.\n" and new.read_text() == written
    assert f"{card} was edited and stays as it is" in caplog.text
    card.write_text(written)  # as it would be written, if by hand
    assert main([str(run)]) == 0
    assert card.read_text() == written and not new.exists()

"""What functions of the library return is what the commands print and write, to the last digit and byte."""

import json
import math
from pathlib import Path

import pytest
from finetuned_runs import texts, trained

import finetune
import pretrain
from finetune.evaluate import main as evaluate_tuned
from finetune.export import main as export_tuned
from finetune.predict import main as predict
from finetune.report.__main__ import main as report_tuned
from pretrain.evaluate import main as evaluate
from pretrain.export import main as export
from pretrain.report.__main__ import main as report
from pretrain.sample import main as sample


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of a decoder, one of fine-tuning that started from it, and the data of that one."""
    folder = tmp_path_factory.mktemp("library")
    records = [{"text": text, "label": word} for text, word in texts(23)]
    run, data = trained(folder, "gpt2", "classification", records, "eval.every=1", "checkpoint.keep=9")
    return folder / "source", run, data


def said(capsys, command, *arguments) -> list:
    """Return the lines of JSON that a command prints."""
    capsys.readouterr()
    assert command([*map(str, arguments)]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_fine_tuned_model(capsys, tmp_path, runs):
    _, run, data = runs
    model = finetune.load(str(run))
    assert said(capsys, predict, run, data) == model.predict(data)
    assert said(capsys, evaluate_tuned, run, data) == [model.evaluate(data)]
    assert report_tuned([str(run), "--out", str(tmp_path / "page")]) == 0
    assert model.report(out=tmp_path / "own")[1].read_bytes() == (tmp_path / "page" / "report.md").read_bytes()
    assert export_tuned([str(run), "--out", str(tmp_path / "theirs"), "--dtype", "bf16"]) == 0
    assert contents(model.export(tmp_path / "ours", dtype="bf16")) == contents(tmp_path / "theirs")
    first = finetune.load(run, step=1, settings=["task.max_tokens=4"])
    assert said(capsys, predict, run, data, "--step", 1, "--set", "task.max_tokens=4") == first.predict(str(data))


def test_a_language_model(capsys, tmp_path, runs):
    run, _, _ = runs
    model = pretrain.load(str(run))
    drawing = {"max_tokens": 9, "temperature": 0.7, "top_k": 20, "top_p": 0.9, "samples": 2, "seed": 5}
    options = [word for name, value in drawing.items() for word in (f"--{name.replace('_', '-')}", value)]
    found = said(capsys, sample, run, "--prompt", "the", "--prompt", "time", *options, "--json")
    continuations = [text for texts in model.generate(["the", "time"], **drawing) for text in texts]
    assert [one["continuation"] for one in found] == continuations
    assert export([str(run), "--out", str(tmp_path / "theirs")]) == 0
    assert contents(model.export(tmp_path / "ours")) == contents(tmp_path / "theirs")


@pytest.mark.slow  # it prepares the text in processes of its own
def test_an_evaluation(capsys, tmp_path, monkeypatch, runs):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("\n\n".join(text for text, _ in texts(90)))
    [found] = said(capsys, evaluate, runs[0], "text.txt", "--json")
    measured = pretrain.load(runs[0]).evaluate("text.txt")
    assert measured["loss"] > 0 and measured == {name: found[name] for name in measured}


def test_records_of_a_run(capsys, tmp_path, runs):
    _, run, _ = runs
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    table = pretrain.history(run)
    assert list(table.columns) == list(dict.fromkeys(key for record in logged for key in record))
    for record, (_, row) in zip(logged, table.iterrows(), strict=True):
        for key in table.columns:
            value = record.get(key)
            assert math.isnan(row[key]) if value is None else row[key] == value, key


def test_a_page_on_a_run(tmp_path, runs):
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_bytes((runs[1] / "metrics.jsonl").read_bytes())
    assert report([str(run)]) == 0
    written = (run / "report" / "report.md").read_bytes()
    assert pretrain.write_report(str(run), out=str(tmp_path / "own"))[1].read_bytes() == written

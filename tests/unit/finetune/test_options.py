"""What a run has learnt holds when it is used, its threshold among that; other settings of its task may be set."""

import json
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
from finetuned_runs import texts, trained, write

from finetune.evaluate import main as evaluate
from finetune.predict import main as predict
from finetune.report.__main__ import main as report
from finetune.tasks.classification.task import ClassificationConfig
from finetune.tasks.qa.task import QaConfig
from finetune.tasks.tokens.task import TokensConfig
from finetune.trained import load


def said(capsys, command, *arguments):
    """Return the lines of JSON that a command prints."""
    capsys.readouterr()
    assert command([*map(str, arguments)]) == 0
    return [json.loads(line, parse_constant=pytest.fail) for line in capsys.readouterr().out.splitlines()]


@pytest.fixture(scope="module")
def unanswerable(tmp_path_factory):
    """A run on questions a third of which have no answer, all steps saved, and a file where the others have none."""
    contexts = [" ".join(text for text, _ in texts(place % 4 + 2)) for place in range(18)]
    contexts = [context.replace("the ", "") for context in contexts]  # "the" is as right as no answer
    records = [
        {
            "id": str(place),
            "question": "the year" if place % 3 else "school life",
            "context": context,
            "answers": [{"text": "time", "answer_start": 0}] if place % 3 else [],
        }
        for place, context in enumerate(contexts)
    ]
    folder = tmp_path_factory.mktemp("unanswerable")
    windows = ["task.stride=4", "task.max_question_tokens=6", "train.max_tokens=64"]
    steps = ["eval.every=1", "checkpoint.keep=9", "task.unanswerable=true"]
    run, data = trained(folder, "bert", "qa", records, *windows, *steps)
    answers = [[] if one["answers"] else [{"text": "time", "answer_start": 0}] for one in records]
    other = write(folder / "other.jsonl", [{**one, "answers": own} for one, own in zip(records, answers, strict=True)])
    return run, data, other


def reported(capsys, run, *arguments):
    """Return the threshold that a report tells."""
    capsys.readouterr()
    assert report([*map(str, (run, *arguments))]) == 0
    page = Path(capsys.readouterr().out.splitlines()[-1]).read_text()  # its Markdown
    return page.split("| no_answer_threshold | ")[1].split()[0]


def answered(predictions, threshold):
    """Say of each question whether it has an answer, which no answer does not beat by more than a threshold."""
    return [one["no_answer_score"] <= threshold for one in predictions]


def test_a_threshold_is_that_of_the_validation_set_at_the_step(capsys, unanswerable):
    run, data, other = unanswerable
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = {row["step"]: row for row in rows if row["split"] == "validation"}
    assert len({row["no_answer_threshold"] for row in found.values()}) == len(found) == 3
    unlike_0 = []
    for step, row in found.items():
        threshold = row["no_answer_threshold"]
        [measured] = said(capsys, evaluate, run, data, "--step", step)
        assert measured == pytest.approx({name: row[name] for name in measured})
        [measured] = said(capsys, evaluate, run, other, "--step", step)
        predictions = said(capsys, predict, run, other, "--step", step)
        there = [one["answer"] != "" for one in predictions]
        assert measured["no_answer_threshold"] == threshold and there == answered(predictions, threshold)
        unlike_0.append(there != answered(predictions, 0))
    assert any(unlike_0)
    best = json.loads((run / "run.json").read_text())["best_step"]
    [measured] = said(capsys, evaluate, run, other)
    assert measured["no_answer_threshold"] == found[best]["no_answer_threshold"]
    assert reported(capsys, run, other) == f"{measured['no_answer_threshold']:.4f}"


def test_a_threshold_that_is_set_wins(capsys, unanswerable):
    run, _, other = unanswerable
    key = "task.no_answer_threshold"
    [found] = said(capsys, evaluate, run, other)
    [own] = said(capsys, evaluate, run, other, "--set", f"{key}=null")
    assert own["f1"] > found["f1"] and own["no_answer_threshold"] != found["no_answer_threshold"]
    [given] = said(capsys, evaluate, run, other, "--set", f"{key}={own['no_answer_threshold']}")
    assert given == own
    assert reported(capsys, run, other, "--set", f"{key}=-0.125") == "-0.1250"
    predictions = said(capsys, predict, run, other, "--set", "task.n_best=2", "--set", f"{key}=-1e9")
    assert {one["answer"] for one in predictions} == {""} and {len(one["n_best"]) for one in predictions} == {3}
    unset = said(capsys, predict, run, other, "--set", f"{key}=null")
    assert [one["answer"] != "" for one in unset] == answered(unset, 0)


def test_a_step_that_was_not_measured_has_no_threshold(capsys, caplog, tmp_path, unanswerable):
    run, data, _ = unanswerable
    shutil.copytree(run, tmp_path / "run")
    metrics = tmp_path / "run" / "metrics.jsonl"
    metrics.write_text("".join(line for line in metrics.read_text().splitlines(True) if '"step": 2' not in line))
    predictions = said(capsys, predict, tmp_path / "run", data, "--step", 2)
    assert [one["answer"] != "" for one in predictions] == answered(predictions, 0)
    warned = [record for record in caplog.records if record.levelname == "WARNING"]
    [told] = [record.getMessage() for record in warned if record.name == "finetune.trained"]
    assert "step-00000002: was not measured" in told and "a setting gives it: task.no_answer_threshold=VALUE" in told
    caplog.clear()
    said(capsys, predict, tmp_path / "run", data, "--step", 2, "--set", "task.no_answer_threshold=0")
    assert not any(record.levelname == "WARNING" and record.name == "finetune.trained" for record in caplog.records)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("tuning=lora", "tuning=lora: not a setting of the task"),
        ("task=tokens", "task=tokens: not a setting of the task"),
        ("+task.stride=1", "+task.stride=1: not a setting of the task"),
        (
            "task.unanswerable=false",
            "task.unanswerable=false: the run was trained with its own task.unanswerable",
        ),
        ("task.validation=x.jsonl", "the run was trained with its own task.validation, which stays; leave it out"),
        ("task.nbest=3", "task.nbest: no such setting; did you mean task.n_best?"),
        ("task.n_best=many", "task.n_best=many: takes a whole number"),
        ("task.n_best=0", "task.n_best=0: must be at least 1"),
        ("task.max_tokens=5000", "task.max_tokens=5000: {run} sees sequences of at most 32 tokens; lower it"),
        ("task.no_answer_threshold=nan", "task.no_answer_threshold=nan: must be a finite number"),
    ],
)
def test_settings_that_are_refused(capsys, unanswerable, setting, message):
    run, data, _ = unanswerable
    assert predict([str(run), str(data), "--set", setting]) == 2
    assert message.format(run=run) in capsys.readouterr().err


@pytest.mark.parametrize("command", [predict, evaluate, report], ids=["predict", "evaluate", "report"])
def test_each_command_refuses(capsys, unanswerable, command):
    run, data, _ = unanswerable
    assert command([str(run), str(data), "--set", "optim.lr=1"]) == 2
    assert "optim.lr=1: not a setting of the task" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("task", "names"),
    [
        (ClassificationConfig, ["problem", "labels", "label_smoothing", "class_weights"]),
        (TokensConfig, ["scheme", "labels", "label_all_pieces", "label_smoothing", "class_weights"]),
        (QaConfig, ["unanswerable"]),
    ],
)
def test_what_weights_are_for_is_fixed(task, names):
    assert {"train", "validation", "metric", *names} == set(task.fixed)
    assert set(task.fixed) <= {field.name for field in fields(task)}


def test_columns_of_another_file_and_longer_texts(tmp_path, capsys):
    records = [{"text": text, "label": word} for text, word in texts(12)]
    run, data = trained(tmp_path, "bert", "classification", records, "task.max_tokens=4", "train.max_tokens=8")
    other = tmp_path / "other.csv"
    other.write_text("".join(f"{text},{word}\n" for text, word in [("body", "kind"), *texts(12)]))
    assert evaluate([str(run), str(other)]) == 2
    columns = ["--set", "task.columns.text=body", "--set", "task.columns.label=kind"]
    assert said(capsys, evaluate, run, other, *columns) == said(capsys, evaluate, run, data)
    short, long = (said(capsys, predict, run, data, *more) for more in ([], ["--set", "task.max_tokens=32"]))
    changed = [abs(one["score"] - more["score"]) > 1e-6 for one, more in zip(short, long, strict=True)]
    tokenizer = load(run).tokenizer
    assert changed == [len(tokenizer.encode(text).ids) > 4 for text, _ in texts(12)]

"""The report of fine-tuned runs: its numbers are those of evaluation and prediction, whatever the texts are."""

import json
import re
import shutil
import subprocess
import sys

import pytest
from finetuned_runs import WORDS, texts, trained, write
from html_pages import Parsed
from markdown_it import MarkdownIt
from matplotlib.image import imread
from run_directories import make_run

from finetune.evaluate import main as evaluate
from finetune.predict import main as predict
from finetune.report.__main__ import main as report
from pretrain.compose import compose
from pretrain.errors import ConfigError
from pretrain.export import main as export_pretrained
from pretrain.report.__main__ import main as report_pretrained
from pretrain.report.markdown import literal
from pretrain.run import pretrain
from pretrain.sample import main as sample

HOSTILE = ["a | b", "`x` *y* __z__", "<script>", "line\nbreak", "$5 & $6", "# no title", "![x](y)", "\\| \\"]


def cells(page, title):
    """Return the rows of the table under a heading, without its header."""
    text = page.read_text().split(f"## {title}\n")[1].split("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    return [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in lines]


def rows(page, title):
    """Return the table under a heading: {first cell: other cells}."""
    return {name: values for name, *values in cells(page, title)}


def said(capsys, command, *arguments):
    """Return the lines of JSON that a command prints."""
    capsys.readouterr()
    assert command([*map(str, arguments)]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def written(capsys, run, *arguments):
    """Return the page that the command names, after a look at its links and its HTML."""
    capsys.readouterr()
    assert report([str(run), *map(str, arguments)]) == 0
    folder = run / "report" if "--out" not in arguments else arguments[-1]
    page = folder / "report.md"
    assert capsys.readouterr().out.splitlines() == [f"{folder}/report.html", str(page)]
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(page.read_text())
    pictures = [part.split('"')[0] for part in html.split('<img src="')[1:]]
    assert pictures[0] == "training.png" and "<script" not in html
    rows = Parsed((folder / "report.html").read_text()).cells()
    assert all(row in rows for row in Parsed(html).cells() if any(row)), "both have the same tables"
    assert sorted(pictures) == sorted(path.name for path in page.parent.glob("*.png"))
    assert all(imread(page.parent / picture).std() > 0.01 for picture in pictures)
    return page


def assert_metrics(page, measured):
    shown = {re.sub("</?b>", "", name): value for name, [value] in rows(page, "Metrics").items()}
    for name, value in measured.items():
        if "/" not in name:
            assert shown[name] == ("-∞" if value == -sys.float_info.max else f"{value:.4f}")


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    """A run on 23 texts, some of them hostile, with labels that are hostile, too."""
    records = [
        {"text": f"{text} {HOSTILE[place % len(HOSTILE)]}", "label": HOSTILE[WORDS.index(word) % 4]}
        for place, (text, word) in enumerate(texts(23))
    ]
    folder = tmp_path_factory.mktemp("labels")
    return *trained(folder, "bert", "classification", records), records


def test_labels(capsys, labels):
    run, data, records = labels
    page = written(capsys, run)
    [measured] = said(capsys, evaluate, run, data)
    answers = said(capsys, predict, run, data)
    assert_metrics(page, measured)
    pairs = [(record["label"], answer["label"]) for record, answer in zip(records, answers, strict=True)]
    for name in {label for pair in pairs for label in pair}:
        counts = [str([pair[side] for pair in pairs].count(name)) for side in (0, 1)]
        assert rows(page, "Labels")[literal(name)][3:] == counts
    confusions = {(literal(own), literal(guess)): pairs.count((own, guess)) for own, guess in pairs if own != guess}
    shown = {(own, guess): int(times) for own, guess, times, _ in cells(page, "Confusion matrix")}
    assert shown == confusions
    wrong = [answer["score"] for answer, (own, guess) in zip(answers, pairs, strict=True) if own != guess]
    errors = [row[0] for row in cells(page, "Worst errors")]
    assert errors == [f"{score:.3f}" for score in sorted(wrong, reverse=True)][:20]
    facts = rows(page, "Run")
    saved = sorted(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*"))
    assert facts["Newest saved step"] == [str(saved[-1])] and facts["Saved steps"] == ["; ".join(map(str, saved))]
    assert facts["Task"] == ["classification, single_label"]
    assert facts["Training set"][0].endswith("data.jsonl, 23 records")
    record = json.loads((run / "run.json").read_text())
    assert facts["Best step"] == [str(record["best_step"])]
    assert facts["Step of this page"] == [f"{record['best_step']} of 4"]


def test_a_run_whose_metric_never_had_a_value_says_so(capsys, labels, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(labels[0], run)
    metrics = run / "metrics.jsonl"
    metrics.write_text(re.sub(r'"accuracy": [0-9.]+', '"accuracy": "NaN"', metrics.read_text()))
    [best] = rows(written(capsys, run), "Run")["Best step"]
    assert best.endswith(", the last: no evaluation had a value of accuracy")


def test_the_same_page_twice_and_another_file_and_step(capsys, labels, tmp_path):
    run, _, records = labels
    page = written(capsys, run)
    before = {path.name: path.read_bytes() for path in page.parent.iterdir()}
    assert {path.name: path.read_bytes() for path in written(capsys, run).parent.iterdir()} == before
    few = write(tmp_path / "few.jsonl", records[3:10])
    last = max(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*"))
    other = written(capsys, run, few, "--step", last, "--max-tokens", 64, "--out", tmp_path / "a" / "b")
    assert_metrics(other, said(capsys, evaluate, run, few, "--step", last)[0])
    assert rows(other, "Run")["Data of this page"][0].endswith("few.jsonl, 7 records, 7 sequences")


def test_a_page_as_of_a_step_knows_no_later_one(capsys, labels, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(labels[0], run)
    *_, last = lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    step = last["step"]
    later = [{**line, "step": line["step"] + step, "accuracy": 0.99} for line in lines]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, *later]))
    record = json.loads((run / "run.json").read_text())
    del record["sha256"]
    (run / "run.json").write_text(json.dumps({**record, "best_step": 2 * step}))
    facts = rows(written(capsys, run, "--step", step), "Run")
    assert facts["Step of this page"] == [f"{step} of {step}"]
    values = {line["step"]: line["accuracy"] for line in lines if line["split"] == "validation"}
    best = max(values, key=lambda each: values[each])
    assert facts["Best step"][0].split(",")[0] == str(best)


def test_sets_of_labels(capsys, tmp_path):
    records = [
        {"text": text, "label": sorted({word, WORDS[place % 3]})} for place, (text, word) in enumerate(texts(20))
    ]
    run, data = trained(tmp_path, "bert", "classification", records, "task.problem=multi_label")
    page = written(capsys, run)
    assert_metrics(page, said(capsys, evaluate, run, data)[0])
    answers = said(capsys, predict, run, data)
    for word in sorted(WORDS):
        own, guess = (
            {n for n, row in enumerate(side) if word in row[key]}
            for side, key in ((records, "label"), (answers, "labels"))
        )
        expected = [len(own & guess) / len(guess) if guess else 0.0, len(own & guess) / len(own)]
        assert [float(cell) for cell in rows(page, "Labels")[word][:2]] == pytest.approx(expected, abs=6e-4)
        assert rows(page, "Labels")[word][3] == str(len(own))


def test_numbers_of_pairs(capsys, tmp_path):
    records = [{"text": text, "other": "the way", "label": len(text) / 10 - 1} for text, _ in texts(20)]
    columns = ["task.columns.text_pair=other", "task.problem=regression"]
    run, data = trained(tmp_path, "bert", "classification", records, *columns)
    page = written(capsys, run)
    assert_metrics(page, said(capsys, evaluate, run, data)[0])
    answers = said(capsys, predict, run, data)
    most = max(abs(answer["score"] - record["label"]) for answer, record in zip(answers, records, strict=True))
    assert abs(float(cells(page, "Worst errors")[0][0])) == pytest.approx(most, rel=1e-3)


@pytest.mark.parametrize("unanswerable", [False, True])
def test_answers_in_texts(capsys, tmp_path, unanswerable):
    contexts = [" ".join(text for text, _ in texts(place % 4 + 2)) + HOSTILE[place % 8] for place in range(19)]
    records = [
        {
            "id": f"{place}|",
            "question": f"the year {HOSTILE[place % 8]}",
            "context": context,
            "answers": [] if unanswerable and place % 3 == 0 else [{"text": context.split()[1], "answer_start": 4}],
        }
        for place, context in enumerate(contexts)
    ]
    windows = ["task.stride=4", "task.max_question_tokens=6", f"task.unanswerable={unanswerable}"]
    run, data = trained(tmp_path, "bert", "qa", records, *windows)
    page = written(capsys, run)
    [measured] = said(capsys, evaluate, run, data)
    assert_metrics(page, measured)
    wrong = round(19 * (1 - measured["exact_match"]))
    assert f"{wrong} of 19 answers differ from the data." in page.read_text()
    assert len(cells(page, "Worst errors")) == wrong
    assert ("## Confusion matrix" in page.read_text()) == unanswerable
    if unanswerable:
        answers = said(capsys, predict, run, data)
        pairs = [
            (bool(record["answers"]), answer["answer"] != "") for record, answer in zip(records, answers, strict=True)
        ]
        names = {True: "answer", False: "no answer"}
        expected = {
            (names[own], names[not own]): pairs.count((own, not own)) for own in names if (own, not own) in pairs
        }
        shown = {(own, guess): int(times) for own, guess, times, _ in cells(page, "Confusion matrix")}
        assert shown == expected


@pytest.mark.parametrize("scheme", ["bio", "none"])
def test_tags_of_words(capsys, tmp_path, scheme):
    sentences = [text.split() for text, _ in texts(21)]
    tags = [["B-X" if word in WORDS[:3] else "B-Y|Z" if word == "way" else "O" for word in row] for row in sentences]
    records = [{"words": row, "tags": own} for row, own in zip(sentences, tags, strict=True)]
    run, data = trained(tmp_path, "bert", "tokens", records, f"task.scheme={scheme}")
    page = written(capsys, run)
    [measured] = said(capsys, evaluate, run, data)
    assert_metrics(page, measured)
    guesses = [answer["tags"] for answer in said(capsys, predict, run, data)]
    if scheme == "bio":
        shown = rows(page, "Labels")
        for kind, name in (("X", "X"), ("Y|Z", "Y&#124;Z")):
            values = [measured[f"{key}/{kind}"] for key in ("precision", "recall", "f1")]
            assert [float(cell) for cell in shown[name][:3]] == pytest.approx(values, abs=6e-4)
            assert int(shown[name][3]) == sum(row.count(f"B-{kind}") for row in tags)
    else:
        pairs = [pair for row, guess in zip(tags, guesses, strict=True) for pair in zip(row, guess, strict=True)]
        confusions = {(literal(own), literal(guess)): pairs.count((own, guess)) for own, guess in pairs if own != guess}
        shown = {(own, guess): int(times) for own, guess, times, _ in cells(page, "Confusion matrix")}
        assert shown == confusions


def test_refusals(capsys, labels, tmp_path):
    run, *_ = labels
    pretrained = make_run(tmp_path / "pretrained")
    unlabelled = write(tmp_path / "unlabelled.jsonl", [{"text": "the time"}])
    taken = tmp_path / "taken"
    taken.write_text("")
    for arguments, message in (
        ([pretrained], "a run of python -m pretrain, none of python -m finetune; use python -m pretrain.report"),
        ([tmp_path], "not a run directory"),
        ([run, tmp_path / "nowhere.jsonl"], "nowhere.jsonl"),
        ([run, unlabelled], "task.columns.label=label"),
        ([run, "--out", taken], f"--out {taken}: no directory can be made there"),
    ):
        assert report([*map(str, arguments)]) == 2
        assert message in capsys.readouterr().err
    assert report([str(run), "--step", "1000"]) == 4


@pytest.mark.parametrize("command", [report_pretrained, sample, export_pretrained])
def test_commands_of_pretraining_say_what_reads_a_fine_tuned_run(capsys, labels, command):
    run, *_ = labels
    assert command([str(run)]) == 2
    rule = "a run of python -m finetune, none of python -m pretrain; use python -m finetune.report, .predict,"
    assert f"{run}: {rule}" in capsys.readouterr().err


def test_pretraining_does_not_go_on_from_a_fine_tuned_run(labels, tmp_path):
    (tmp_path / "text.txt").write_text("the time")
    overrides = ["data=text", f"data.sources.text.paths=[{tmp_path / 'text.txt'}]", f"run.root={tmp_path / 'runs'}"]
    run, *_ = labels
    with pytest.raises(ConfigError, match=f"{run}: a run of python -m finetune, none of python -m pretrain"):
        pretrain(compose([*overrides, f"init_from={run}"]))
    assert not (tmp_path / "runs").exists()


def test_help_needs_no_torch():
    program = (
        "import sys\nfrom finetune.report.__main__ import main\ntry: main(['--help'])\n"
        "except SystemExit: sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "--out DIR" in done.stdout

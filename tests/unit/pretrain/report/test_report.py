"""The report of run directories: finished, running, killed, partly missing, broken."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
from html_pages import Parsed

from pretrain.errors import ConfigError
from pretrain.report import run_page
from pretrain.report.__main__ import main
from pretrain.report.curves import MANY_POINTS, choice_charts, shared_axis, smoothed, training_charts
from pretrain.report.history import load
from pretrain.report.run_sections import SAMPLED_STEPS


def make_run(folder, *, name=None, steps=40, lr=1e-3, batch=64, config=True, facts=True):
    """Write a run directory with known numbers: loss 8/sqrt(step), 100 tokens/s with one slow first line."""
    folder.mkdir()
    lines = [{"step": 0, "split": "validation", "loss": 8.0, "perplexity": 2981.0, "bits_per_byte": 4.0, "tokens": 0}]
    for step in range(10, steps + 1, 10):
        lines.append(
            {"step": step, "split": "train", "loss": 8 / step**0.5, "tokens": step * batch, "lr": lr, "grad_norm": 1.0}
            | {"tokens_per_s": 100.0 if step > 10 else 10.0, "mfu": None, "step_s": 0.5, "memory_bytes": 2**30}
            | {"skipped": 1}
        )
        lines.append(
            {"step": step, "split": "validation", "loss": 8 / step**0.5 + abs(step - 30) / 10, "perplexity": 5.0}
            | {"bits_per_byte": 1.5, "tokens": step * batch}
        )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if config:
        (folder / "config.yaml").write_text(
            f"run: {{name: {folder.name}}}\noptim: {{lr: {lr}, betas: [0.9, 0.95]}}\ntrain: {{batch_size: {batch}}}\n"
        )
    if facts:
        details = {"parameters": 17_300_000, "exit": 0, "corpora": {"text": "somewhere"}}
        (folder / "run.json").write_text(json.dumps({"name": name or folder.name, **details}))
    return folder


@pytest.fixture(autouse=True)
def compressors(monkeypatch):
    """Stand in for the corpora of runs, which compressors would read."""
    known = {"gzip -9": 2.25, "xz -9": 2.0}
    monkeypatch.setattr(run_page, "baselines", lambda corpora: known if list(corpora) else {})


def table(page, title):
    """Return {first cell: other cells} of the table under a heading."""
    text = page.read_text().split(f"## {title}\n")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return {row[0]: row[1:] for row in rows}


def test_one_run(tmp_path):
    run = make_run(tmp_path / "demo")
    html, page = run_page.write_report(run, out=run / "report")
    assert (html, page) == (run / "report" / "report.html", run / "report" / "report.md")
    reached = table(page, "What was reached")
    assert reached == {
        "": [],
        "---": ["---"],
        "State": ["done"],
        "Parameters": ["17.3 M"],
        "Last logged step": ["40"],
        "Newest saved step": ["none"],
        "Tokens seen": ["2.56 k"],
        "Training loss, last line": [f"{8 / math.sqrt(40):.4f}"],
        "Held-out loss": [f"{8 / math.sqrt(40) + 1:.4f}"],
        "Best held-out loss": [f"{8 / math.sqrt(30):.4f} at step 30"],
        "Perplexity": ["5.00"],
        "Bits per byte": ["1.5000"],
        "Bits per byte, first evaluation": ["4.0000"],
        "Bits per byte, gzip -9": ["2.2500"],
        "Bits per byte, xz -9": ["2.0000"],
        "Tokens per second, median": ["100"],
        "Memory, largest": ["1.00 GiB"],
        "Skipped updates": ["4"],
        "Training time": ["0:00:20"],
    }
    assert "configurations differ" not in page.read_text()


def test_pairs_of_sentences_have_curves_and_rows_where_they_are_learnt(tmp_path):
    run = make_run(tmp_path / "pairs")
    assert len(training_charts([load(run)]).charts) == 4
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line |= {"sentence_loss": line["step"] / 100, "sentence_accuracy": None if line["step"] == 10 else 0.75}
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    *_, loss, right = training_charts([load(run)]).charts
    assert (loss.title, right.title) == ("Loss on sentences, nats per pair", "Share of pairs told right")
    training, held_out = loss.curves
    assert training.y.tolist() == [0.1, 0.2, 0.3, 0.4] and held_out.y.tolist() == [0, 0.1, 0.2, 0.3, 0.4]
    assert len(right.curves[0].y) == 3, "a step without a pair is none of the curve"
    _, page = run_page.write_report(run)
    reached = table(page, "What was reached")
    assert reached["Training loss on sentences, last line"] == reached["Loss on sentences"] == ["0.4000"]
    assert reached["Accuracy on sentences"] == ["75.0%"]


def test_the_figure_is_a_picture_with_curves_on_it(tmp_path):
    from matplotlib.image import imread

    run = make_run(tmp_path / "demo", steps=10 * MANY_POINTS)
    run_page.write_report(run, out=tmp_path / "out")
    pixels = imread(tmp_path / "out" / "curves.png")[..., :3]
    assert pixels.shape == (1125, 1800, 3)
    for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):  # training, held out
        assert (np.abs(pixels - np.array(colour) / 255).max(axis=2) < 0.02).sum() > 500


def test_comparing_runs_shows_what_differs_and_only_that(tmp_path):
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b|c", lr=3e-3), make_run(tmp_path / "d", batch=128)]
    _, page = run_page.write_report(*runs, out=tmp_path / "out")
    assert table(page, "Where the configurations differ") == {
        "key": ["a", "b&#124;c", "d"],
        "---": ["---"] * 3,
        "`optim.lr`": ["`0.001`", "`0.003`", "`0.001`"],
        "`train.batch_size`": ["`64`", "`64`", "`128`"],
    }
    assert table(page, "What was reached")["Tokens seen"] == ["2.56 k", "2.56 k", "5.12 k"]


def answers(run, *sets):
    """Add the answers to questions to the evaluations of a run: 20 % at first, 1 % more every step."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["split"] == "validation":
            line |= {f"choices/{name}": 0.2 + line["step"] / 100 for name in sets}
            line |= {f"choices/{name}/raw": 0.25 for name in sets}
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    facts = json.loads((run / "run.json").read_text())
    facts["choices"] = {name: {"questions": 40, "chance": 0.25} for name in sets}
    (run / "run.json").write_text(json.dumps(facts))
    return run


def test_answers_to_questions_are_drawn_over_a_line_of_chance(tmp_path):
    run = answers(make_run(tmp_path / "a"), "quiz", "more")
    html, page = run_page.write_report(run, out=tmp_path / "out")
    row = ["60.0%", "60.0%", "25.0%", "25.0%", "40"]
    shown = table(page, "Multiple choice")
    assert shown["set"] == ["by bytes", "best", "by whole choices", "chance", "questions"]
    assert shown["quiz"] == shown["more"] == row and (tmp_path / "out" / "choices.png").exists()
    assert "choices.png" in page.read_text() and "quiz: share of right answers" in html.read_text()
    charts = choice_charts([load(run), load(make_run(tmp_path / "b"))], ["quiz", "more"])
    for chart in charts.charts:
        measured, chance = chart.curves
        assert measured.name == "a" and measured.y == pytest.approx([0.2, 0.3, 0.4, 0.5, 0.6])
        assert chance.name == "chance" and chance.y.tolist() == [0.25] * 2 and chance.x["step"].tolist() == [0, 40]


def test_choices_that_differ_are_told_one_by_one(tmp_path):
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b")]
    for run, optim in zip(runs, ("adamw", "muon"), strict=True):
        entries = f"[pretrain_schema, {{optim: {optim}}}, {{source@data.sources.text: text}}, _self_]"
        with (run / "config.yaml").open("a") as config:
            config.write(f"defaults: {entries}\n")
    differing = table(run_page.write_report(*runs, out=tmp_path / "out")[1], "Where the configurations differ")
    assert differing == {"key": ["a", "b"], "---": ["---"] * 2, "`optim`": ["`adamw`", "`muon`"]}


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path):
    runs = [make_run(tmp_path / "a", name="same"), make_run(tmp_path / "b", name="same")]
    _, page = run_page.write_report(*runs, out=tmp_path / "out")
    assert table(page, "What was reached").keys() >= {"Last logged step"}
    assert str(runs[0]) in page.read_text() and str(runs[1]) in page.read_text()


def test_missing_files_and_a_torn_last_line_are_tolerated(tmp_path):
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", config=False, facts=False)]
    with (runs[1] / "metrics.jsonl").open("a") as file:
        file.write('{"step": 50, "split": "tr')
    _, page = run_page.write_report(*runs, out=tmp_path / "out")
    reached = table(page, "What was reached")
    assert reached["Parameters"] == ["17.3 M", "–"]
    assert reached["Bits per byte, xz -9"] == ["2.0000", "–"]
    assert reached["Last logged step"] == ["40", "40"]
    assert "Not compared: no config.yaml in b." in page.read_text()


def test_a_diverged_run_has_a_report(tmp_path):
    run = make_run(tmp_path / "a")
    lines = [
        {"step": 50, "split": "train", "loss": "NaN", "grad_norm": "Infinity", "tokens": 3200, "tokens_per_s": 1.0},
        {"step": 50, "split": "validation", "loss": "NaN", "perplexity": "NaN", "bits_per_byte": "NaN", "tokens": 3200},
    ]
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    reached = table(run_page.write_report(run, out=tmp_path / "out")[1], "What was reached")
    assert reached["Held-out loss"] == ["nan"]
    assert reached["Best held-out loss"] == [f"{8 / math.sqrt(30):.4f} at step 30"]


def test_a_run_that_only_diverged_or_only_evaluated_can_be_drawn(tmp_path):
    for number, line in enumerate(
        [
            {"step": 1, "split": "train", "loss": "NaN", "grad_norm": "Infinity", "tokens": 5},
            {"step": 0, "split": "validation", "loss": 9.0, "tokens": 0},
        ]
    ):
        run = tmp_path / str(number)
        run.mkdir()
        (run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        assert all(page.is_file() for page in run_page.write_report(run, out=run / "report"))


def save(run, *steps):
    for step in steps:
        folder = run / "checkpoints" / f"step-{step:08}"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")


def test_the_page_knows_which_steps_are_saved_and_how_the_run_stands(tmp_path):
    runs = [make_run(tmp_path / name) for name in "abcd"]
    save(runs[0], 20, 30)
    save(runs[1], *range(1, 41))
    (runs[1] / "checkpoints" / "step-00000050").mkdir()  # not saved yet
    facts = [{"exit": None, "best_step": 20}, {"exit": 0, "best_step": 7}, {"exit": 85, "best_step": 30}, {"exit": 5}]
    for run, known in zip(runs, facts, strict=True):
        (run / "run.json").write_text(json.dumps({"name": run.name, **known}))
    reached = table(run_page.write_report(*runs, out=tmp_path / "out")[1], "What was reached")
    assert reached["Newest saved step"] == ["30, 10 behind the last logged", "40", "none", "none"]
    assert reached["Saved steps"] == ["20; 30", "1; 2; … (40 in all) …; 39; 40", "–", "–"]
    assert reached["Best step"] == ["20", "7", "30, not on disk", "–"]
    assert [state.partition(":")[0] for state in reached["State"]] == ["killed", "done", "preempted", "failed"]
    assert reached["State"][3] == "failed: Losses or gradients that stayed non-finite for longer than the run allows"


def test_a_page_as_of_a_step_has_nothing_that_came_later(tmp_path):
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", steps=30)]
    save(runs[0], 10, 20, 40)
    lines = [{"step": step, "prompt": "x", "continuation": f"at {step}"} for step in (10, 30)]
    (runs[0] / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    whole, _ = run_page.write_report(*runs, out=tmp_path / "whole")
    html, page = run_page.write_report(*runs, out=tmp_path / "out", step=20)
    reached = table(page, "What was reached")
    assert reached["Last logged step"] == ["20", "20"] and reached["Newest saved step"] == ["20", "none"]
    assert reached["Held-out loss"] == [f"{8 / math.sqrt(20) + 1:.4f}"] * 2
    assert ("at 30" in whole.read_text(), "at 30" in html.read_text(), "at 10" in html.read_text()) == (
        True,
        False,
        True,
    )
    assert "as of step 20" in html.read_text()
    charts = [json.loads(text) for attributes, text in Parsed(html.read_text()).all("script") if "type" in attributes]
    assert max(step for chart in charts[0]["charts"] for each in chart["curves"] for step in each["x"]["step"]) == 20
    _, page = run_page.write_report(*runs, out=tmp_path / "out", step=35)
    assert table(page, "What was reached")["Last logged step"] == ["30", "30"]


@pytest.mark.parametrize(("option", "value"), [("step", "20"), ("out", "there")])
def test_what_is_about_a_page_is_refused_beside_a_sync(tmp_path, capsys, option, value):
    assert main([str(make_run(tmp_path / "a")), "--sync", f"--{option}", value]) == 2
    assert f"--{option}={value}: is about a page; --sync sends the whole run: leave it out" in capsys.readouterr().err


@pytest.mark.parametrize("step", [-1, 41])
def test_a_step_without_records_is_refused(tmp_path, capsys, step):
    assert main([str(make_run(tmp_path / "a")), "--step", str(step)]) == 2
    assert f"--step={step}: there are records of steps 0 to 40; name one of these" in capsys.readouterr().err


def test_samples_of_runs_stand_side_by_side_and_are_thinned(tmp_path):
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b")]
    for run in runs:
        lines = [
            {"step": step, "prompt": prompt, "continuation": f"{run.name} {step}\n*{prompt}*"}
            for step in range(1, 100)
            for prompt in ("one ", "two ")
        ]
        (run / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 100, "pro')
    html, page = run_page.write_report(*runs, out=tmp_path / "out")
    steps = [text for _, text in Parsed(html.read_text()).all("h3")]
    assert len(steps) == SAMPLED_STEPS and (steps[0], steps[-1]) == ("Step 1", "Step 99")
    assert f"Shown are {SAMPLED_STEPS} of 99 evaluations." in page.read_text()
    rows = page.read_text().split("At step 99:")[1].split("##")[0].splitlines()[4:8]
    assert rows == [f"| {run} | {prompt}  | {run} 99 \\*{prompt} \\* |" for prompt in ("one", "two") for run in "ab"]


def test_what_is_odd_about_a_run_is_said(tmp_path):
    run = make_run(tmp_path / "a")
    (run / "run.json").write_text(json.dumps({"name": "a", "notes": ["step 20 was passed over"]}))
    lines = [{"step": step, "split": "train", "loss": "NaN", "tokens": step * 64} for step in (50, 60)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = run_page.write_report(run, out=tmp_path / "out")[1].read_text()
    for note in (
        "step 20 was passed over",
        "2 of 2 training losses are not finite, the first at step 50: curves have gaps there",
        "nothing held out was measured",
    ):
        assert f"| {note} |" in text


def test_a_comparison_begins_with_a_row_for_each_run(tmp_path):
    runs = [make_run(tmp_path / name, steps=10 + 10 * place) for place, name in enumerate("abcd")]
    html, page = run_page.write_report(*runs, out=tmp_path / "out")
    assert page.read_text().startswith("# 4 runs\n")
    rows = Parsed(html.read_text()).cells()
    place = next(place for place, row in enumerate(rows) if row[:2] == ["run", "held-out loss"])
    steps = rows[place].index("last logged step")
    assert [(row[0], row[steps]) for row in rows[place + 1 : place + 5]] == [
        ("a", "10"),
        ("b", "20"),
        ("c", "30"),
        ("d", "40"),
    ]


def test_the_whole_configuration_is_in_the_html_and_no_secret(tmp_path):
    run = make_run(tmp_path / "a")
    with (run / "config.yaml").open("a") as config:
        config.write("hub: {token: hf_abcdefghijklmnopqrstuvwxyz}\n")
    html, page = run_page.write_report(run, out=tmp_path / "out")
    rows = Parsed(html.read_text()).cells()
    assert ["optim.betas", "[0.9, 0.95]"] in rows and ["hub.token", "<redacted>"] in rows
    assert (
        "optim.betas" not in page.read_text() and "In `report.html` beside this page: configuration" in page.read_text()
    )


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("metrics.jsonl", None, "metrics.jsonl: not there"),
        ("metrics.jsonl", '{"step": 1, "spl', "no whole line yet"),
        ("metrics.jsonl", '{"step": 1, "split": "train"}\nno\n', "metrics.jsonl:2: not a record"),
        ("metrics.jsonl", '{"split": "train", "loss": 1}\n', "metrics.jsonl:1: not a record"),
        ("metrics.jsonl", '{"step": 1, "split": "train", "loss": "low"}\n', "metrics.jsonl:1: not a record"),
        ("run.json", "{", "run.json: not readable (Expecting"),
        ("run.json", "[]", "run.json: not readable (not a JSON object)"),
        ("config.yaml", "a: [", "config.yaml:1: cannot be read"),
        ("samples.jsonl", '{"step": 1, "prompt": "a"}\n', "samples.jsonl:1: not a record (it lacks 'continuation')"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name_with_exit_code_2(tmp_path, capsys, file, text, message):
    run = make_run(tmp_path / "a")
    (run / file).unlink(missing_ok=True)
    if text is not None:
        (run / file).write_text(text)
    with pytest.raises(ConfigError):
        load(run)
    assert main([str(run)]) == 2
    assert message in capsys.readouterr().err


def test_smoothing_keeps_level_start_and_slope_and_drops_a_spike():
    values = np.linspace(8, 4, 1000)
    values[500] = 100.0
    values[600] = np.nan
    at, smooth = smoothed(values)
    assert smooth[0] == values[0]
    assert len(at) == 300
    np.testing.assert_allclose(smooth, np.linspace(8, 4, 1000)[at], atol=0.05)


def test_runs_of_equal_batches_share_steps_and_others_tokens(tmp_path):
    same, other = load(make_run(tmp_path / "a")), load(make_run(tmp_path / "b", batch=128))
    assert shared_axis([same]) == shared_axis([same, same]) == "step"
    assert shared_axis([same, other]) == "tokens"


def test_the_command_needs_no_torch_and_tells_where_the_page_is(tmp_path):
    run = make_run(tmp_path / "a")
    program = (
        "import sys; from pretrain.report.__main__ import main; sys.exit(main(sys.argv[1:]) or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(run)], capture_output=True, text=True, check=True)
    assert done.stdout == f"{run}/report/report.html\n{run}/report/report.md\n"


def test_the_costliest_operators_of_the_newest_profiled_steps(tmp_path):
    run = make_run(tmp_path / "demo")
    operator = {"name": "aten::mm", "calls": 36, "self_ms": 6.0, "share": 0.75}
    costs = {"device": "cuda", "steps": 3, "wall_ms": 12.0, "total_ms": 8.0, "operators": [operator]}
    for name, steps in (("steps-10-13/rank-4", 3), ("steps-10-13/rank-0", 3), ("steps-2-3/rank-0", 1)):
        path = run / "profile" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(costs | {"steps": steps}))
    _, page = run_page.write_report(run, out=tmp_path / "now")
    assert table(page, "Costliest operators")["`aten::mm`"] == ["12", "2.00", "75.0%"]
    assert "3 steps up to step 13 on rank 0; self times of kernels on the device" in page.read_text()
    _, page = run_page.write_report(run, out=tmp_path / "then", step=10)
    assert table(page, "Costliest operators")["`aten::mm`"] == ["36", "6.00", "75.0%"]
    path.write_text("{}")
    with pytest.raises(ConfigError, match=r"steps-2-3/rank-0\.json: not readable"):
        run_page.write_report(run)


def test_the_page_says_how_often_a_run_had_spikes_and_what_it_skipped(tmp_path):
    run = make_run(tmp_path / "wild", steps=2000)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    noise = np.random.default_rng(1).normal(3, 0.1, len(lines))
    for line, value in zip(lines, noise, strict=True):
        if line["split"] == "train":
            line |= {
                "loss": 9.0 if line["step"] == 1500 else value,
                "grad_norm": value,
                "loss_max": value,
                "grad_norm_max": value,
            }
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    skipped = [(1498, 1510, 250.5, "outlier"), (1499, 1511, "NaN", "non-finite")]
    keys = ("step", "data_step", "grad_norm", "cause")
    (run / "skips.jsonl").write_text("".join(json.dumps(dict(zip(keys, row, strict=True))) + "\n" for row in skipped))
    _, page = run_page.write_report(run)
    found = table(page, "Spikes")
    assert found["training loss"] == ["0.50%", "1", "1,500"]
    assert found["gradient norm"][:2] == ["0.00%", "0"]
    assert found["1,498"] == ["1,510", "outlier", "250.50"]
    assert found["1,499"] == ["1,511", "non-finite", "nan"]
    assert not load(run).until(1400).skips


def test_a_run_without_spikes_has_no_section_of_them(tmp_path):
    _, page = run_page.write_report(make_run(tmp_path / "calm"))
    assert "## Spikes" not in page.read_text()

"""The day of a GPU: parts survive each other and their limits, time is shared out, and every part's code runs."""

import json
import sys
import time

import pytest

from bench.gpu import grid, parts, suite, training
from bench.gpu.__main__ import PARTS, main
from bench.gpu.parts import Part, State, run_parts
from bench.gpu.shapes import SHAPES
from bench.gpu.stopwatch import SMALL
from bench.gpu.table import as_markdown


def part(name, code, *, least_s=0.0, most_s=60.0, needs=()):
    return Part(name=name, least_s=least_s, most_s=most_s, needs=needs, command=(sys.executable, "-c", code))


def outcomes(*chosen, budget_s=60.0):
    known = []
    run_parts(chosen, budget_s, [], lambda so_far: known.append([*so_far]))
    assert [len(each) for each in known] == [*range(1, len(chosen) + 1)], "told of after each part"
    return {each.name: each for each in known[-1]}


def test_a_part_that_fails_or_hangs_keeps_what_it_had_measured_and_costs_the_others_nothing():
    tells = 'print(\'RESULT {"kind": "figure", "value": 7}\', flush=True)\n'
    hangs = f"{tells}import subprocess, sys\nsubprocess.run(['sleep', '600'])"
    began = time.monotonic()
    found = outcomes(
        part("fails", f"{tells}print('on the way')\nraise LookupError('no such kernel')"),
        part("hangs", hangs, most_s=0.5),
        part("lacks", "", needs=("json", "no_such_module", "bench.no_such.module")),
        part("works", tells),
    )
    assert time.monotonic() - began < 30
    assert [each.state for each in found.values()] == [State.failed, State.stopped, State.skipped, State.done]
    figure = [{"kind": "figure", "value": 7}]
    assert [each.results for each in found.values()] == [figure, figure, [], figure]
    assert found["fails"].tail[0] == "on the way" and found["fails"].tail[-1] == "LookupError: no such kernel"
    assert found["fails"].reason == "exit code 1" and found["works"].tail == []
    assert found["lacks"].reason == "no_such_module, bench.no_such.module missing; see bench/gpu.md"


def test_time_that_later_parts_need_at_least_is_left_to_them_and_none_costs_one_before_it(monkeypatch):
    now, limits = [0.0], {}

    def run(part, limit, options):
        limits[part.name] = round(limit)
        now[0] += limit
        return parts.Outcome(part.name, State.done)

    monkeypatch.setattr(parts, "run_part", run)
    monkeypatch.setattr(parts.time, "monotonic", lambda: now[0])
    chosen = [
        part("short", "", least_s=5, most_s=20),
        part("long", "", least_s=10, most_s=500),
        part("absent", "", least_s=1000, needs=("no_such_module",)),
        part("large", "", least_s=60, most_s=500),
        part("small", "", least_s=15, most_s=500),
    ]
    outcomes(*chosen, budget_s=200.0)
    assert limits == {"short": 20, "long": 105, "large": 60, "small": 15}
    limits.clear()
    found = outcomes(*chosen, budget_s=70.0)
    assert limits == {"short": 5, "long": 10, "small": 55}
    assert found["large"].state is State.dropped
    assert found["large"].reason == "55 s of 70 are left, and it needs 60"


def test_all_parts_fit_at_their_least_and_have_names_that_are_known():
    assert sum(each.least_s for each in PARTS) < 530 * 0.6
    assert {*SHAPES} == {each.name for each in PARTS} - {"machine", "tests", "grid"}


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("tests/gpu/test_a.py::test_b[case 1-x] PASSED [  3%]", ("passed", "tests/gpu/test_a.py::test_b[case 1-x]")),
        ("[gw3] [ 12%] FAILED tests/gpu/test_a.py::test_b ", ("failed", "tests/gpu/test_a.py::test_b")),
        ("tests/gpu/test_a.py::test_b SKIPPED (needs a CUDA device) [ 1%]", ("skipped", "tests/gpu/test_a.py::test_b")),
        ("FAILED tests/gpu/test_a.py::test_b - AssertionError", None),  # said once more at the end
        ("tests/gpu/test_a.py::test_b", None),  # under way
    ],
)
def test_outcomes_of_pytest_are_read_line_by_line(line, found):
    assert suite.outcome_in(line) == found


def reported(capsys):
    lines = capsys.readouterr().out.splitlines()
    return [json.loads(line.removeprefix(parts.RESULT)) for line in lines if line.startswith(parts.RESULT)]


def test_the_grid_is_measured_and_its_table_made(capsys):
    grid.measure(dry=True)
    results = reported(capsys)
    assert {each["kind"] for each in results} == {"constants", "product", "attention"}
    assert all(each["forward_ms"] > 0 for each in results if each["kind"] != "constants")
    text = as_markdown(found(results))
    assert "Adding two tensors: " in text and "µs of the host." in text
    assert "| 32 x 64 x 96 |" in text and "| sdpa | 12/12 x 64 | 64 | causal |" in text


def test_attention_counts_the_pairs_that_a_query_sees():
    causal, both, local = (grid.Attention(2, 1, 8, 4, causal=flag, window=width) for flag, width in CASES)
    pairs = {causal: 10, both: 16, local: 16}  # of one sequence; a window of 2 on both sides: 3 of 4 keys at most
    assert causal.flops(4) == 4 * 2 * 8 * pairs[causal] and both.flops(4) == 4 * 2 * 8 * pairs[both]
    assert local.flops(4) == 4 * 2 * 8 * 4 * 3


CASES = [(True, None), (False, None), (False, 2)]


def test_a_preset_trains_by_the_loop_of_the_product():
    shape = SHAPES["modernbert_base"].small
    figures = training.headwater(shape, SMALL, training.settings(shape, compiled=False))
    assert figures["slowest"] <= figures["tokens_per_s"] <= figures["fastest"]
    assert figures["tokens_per_s"] == pytest.approx(shape.step_tokens / figures["step_ms"] * 1e3)
    assert figures["predicted_bytes"] == 16 * figures["parameters"]
    first, last = figures["loss"]
    assert last < first == pytest.approx(6.24, abs=0.1)  # ln 512


def found(results):
    part = {"name": "grid", "state": "done", "seconds": 1.0, "reason": "", "results": results, "tail": ["a | line"]}
    return {"began": "now", "dry_run": True, "budget_s": 530, "parts": [part]}


def test_the_table_says_what_failed_and_what_was_refused():
    entry = {"kind": "training", "shape": "gpt2_124m"}
    figures = {"tokens_per_s": 1000.0, "step_ms": 32.0, "first_step_s": 9.0, "mfu": 0.4, "predicted_bytes": 2**31}
    text = as_markdown(
        found(
            [
                {**entry, "who": "headwater compiled", **figures, "held_bytes": 2**30, "peak_bytes": 2**32},
                {**entry, "who": "transformers compiled", **figures, "tokens_per_s": 800.0},
                {**entry, "who": "headwater compiled fp8", "refused": "precision=fp8: too narrow"},
                {**entry, "who": "headwater", "failed": "OutOfMemoryError: CUDA out of memory"},
                {"kind": "test", "outcome": "failed", "test": "tests/gpu/test_a.py::test_b"},
                {"kind": "test", "outcome": "passed", "test": "tests/gpu/test_a.py::test_c"},
            ]
        )
    )
    row = "| gpt2_124m | headwater compiled | 1,000 | 1.25 | 40.0% | 32.0 | 2.00, 1.00, 4.00 | 9.0 |"
    assert row in text and "| 800 | 1.00 |" in text
    assert "| precision=fp8: too narrow |" in text and "| OutOfMemoryError: CUDA out of memory |" in text
    assert "1 failed, 1 passed." in text and "- failed: `tests/gpu/test_a.py::test_b`" in text


@pytest.mark.slow
def test_the_dry_run_measures_every_part(tmp_path):
    main(["--dry-run", "--out", str(tmp_path)])
    written = json.loads((tmp_path / "results.json").read_text())
    assert {each["name"]: each["state"] for each in written["parts"]} == {each.name: "done" for each in PARTS}
    training = [each for part in written["parts"] for each in part["results"] if each["kind"] == "training"]
    assert len(training) == 3 * len(SHAPES) + 3 and not [each for each in training if "tokens_per_s" not in each]

"""Whole runs in real processes: killed and resumed, on one rank and on several, stopped by signals."""

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from ranks import FAST, SAMPLED, column, command, end, run, run_fresh, start, tiny, wait_until
from safetensors.torch import load_file

from pretrain.checkpoint.load import load_manifest, load_state
from pretrain.compose import compose
from pretrain.errors import ConfigError
from pretrain.trained.model import load


def final_weights(directory: Path) -> dict:
    step = max((directory / "checkpoints").glob("step-*"))
    merged = {}
    for file in sorted(step.glob("*.safetensors")):
        merged |= load_file(file)
    return merged


def samples(directory: Path) -> list[str]:
    file = directory / "samples.jsonl"
    return file.read_text().splitlines() if file.exists() else []


def assert_equal_runs(first: Path, second: Path) -> None:
    assert samples(first) == samples(second)
    assert column(first, "loss") == column(second, "loss")
    assert column(first, "grad_norm") == column(second, "grad_norm")
    assert column(first, "loss", "validation") == column(second, "loss", "validation")
    one, other = final_weights(first), final_weights(second)
    assert one.keys() == other.keys()
    assert all(one[key].equal(other[key]) for key in one)


def assert_close_runs(first: Path, second: Path, tolerance: float = 1e-5) -> None:
    assert_close(first, second, "loss", rel=tolerance)
    assert_close(first, second, "grad_norm", rel=100 * tolerance)
    assert {*samples(first)} <= {*samples(second)}
    one, other = column(first, "loss", "validation"), column(second, "loss", "validation")
    assert one.keys() <= other.keys(), "a run that went on was evaluated where it had ended, too"
    assert [other[step] for step in one] == pytest.approx(list(one.values()), rel=tolerance)
    assert column(first, "tokens") == column(second, "tokens")


def assert_close(first: Path, second: Path, key: str, **tolerance: float) -> None:
    """Compare a column of two runs, step by step."""
    assert column(second, key) == pytest.approx(column(first, key), **tolerance)


def logged(directory: Path) -> int:
    """Return how many lines a run has written to its metrics."""
    metrics = directory / "metrics.jsonl"
    return len(metrics.read_text().splitlines()) if metrics.exists() else 0


def kill_when(condition, *overrides: str, cwd: Path, program: str = "pretrain") -> None:
    """Start a run and kill -9 it as soon as the condition holds."""
    [process] = start(*overrides, cwd=cwd, program=program)
    wait_until(condition, process)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "the kill must hit a living run"


def test_a_run_leaves_what_it_promises(uninterrupted):
    record = json.loads((uninterrupted / "run.json").read_text())
    assert record["exit"] == 0
    assert (
        record["parameters"] == 300 * 32 + 32 * 32 + 2 * (4 * 32 * 32 + 4 * 32 + 8 * 32 * 32 + 5 * 32 + 4 * 32) + 2 * 32
    )
    assert sorted(column(uninterrupted, "loss")) == list(range(1, 25))
    assert sorted(column(uninterrupted, "loss", "validation")) == [0, 8, 16, 24]
    steps = sorted(path.name for path in (uninterrupted / "checkpoints").iterdir())
    assert steps == ["step-00000020", "step-00000024"]
    assert (uninterrupted / "tokenizer.json").exists()
    written = [json.loads(line) for line in samples(uninterrupted)]
    expected = [(step, prompt) for step in (0, 8, 16, 24) for prompt in ("time", "the world")]
    assert [(line["step"], line["prompt"]) for line in written] == expected
    assert all(line.keys() == {"step", "prompt", "continuation"} for line in written)
    assert record["best_step"] == 24
    lines = (uninterrupted / "metrics.jsonl").read_text().splitlines()
    training = json.loads(lines[-2])
    assert {"step", "split", "loss", "tokens", "lr", "grad_norm", "tokens_per_s", "mfu"} <= training.keys()
    losses = column(uninterrupted, "loss", "validation")
    assert losses[24] < losses[0] - 0.5, "it learns"


def test_killed_five_times_and_resumed_equals_never_interrupted(place, uninterrupted):
    overrides = tiny("killed", "model.dropout=0.1", *SAMPLED)
    directory = place / "runs" / "killed"
    after = lambda rows: lambda: logged(directory) > rows
    saving = lambda: any((directory / "checkpoints").glob(".tmp-*"))
    for condition in (after(3), after(9), saving, after(14), saving):
        kill_when(condition, *overrides, cwd=place)
    run_fresh(*overrides, cwd=place)  # strings hash otherwise than in the run that it is compared with
    assert_equal_runs(uninterrupted, directory)


def test_sigterm_saves_at_the_next_step_and_exits_85(place, uninterrupted):
    overrides = tiny("stopped", "model.dropout=0.1", "checkpoint.every=1000", *SAMPLED)
    process = subprocess.Popen(command(*overrides), cwd=place, env=os.environ | FAST)
    wait_until(lambda: logged(place / "runs" / "stopped") > 4, process)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(60) == 85
    [step] = (place / "runs" / "stopped" / "checkpoints").glob("step-*")
    last = max(column(place / "runs" / "stopped", "loss"))
    assert load_state(step)["step"] == last < 24, "saved at the step boundary, nothing done after it"
    assert json.loads((place / "runs" / "stopped" / "run.json").read_text())["exit"] == 85
    run(*overrides, cwd=place)
    assert_equal_runs(uninterrupted, place / "runs" / "stopped")


def test_sigterm_before_the_first_step_exits_85_and_the_run_can_begin_again(place):
    overrides = tiny("early", "train.steps=4")
    [process] = start(*overrides, cwd=place)
    wait_until((place / "runs" / "early" / "log.txt").exists, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 85
    assert not (place / "runs" / "early" / "metrics.jsonl").exists(), "there was nothing to save"
    run(*overrides, "run.fresh=true", cwd=place)


@pytest.mark.parametrize(("ranks", "micro"), [(1, 1), (2, 2), (4, 2)])
def test_ranks_and_micro_batches_do_not_change_the_run(place, one_process, ranks, micro):
    name = f"ranks-{ranks}-{micro}"
    go = run_fresh if (ranks, micro) == (2, 2) else run  # under torchrun, where strings hash differently on each rank
    go(*tiny(name, f"train.micro_batch_size={micro}", *SAMPLED), ranks=ranks, cwd=place)
    assert_close_runs(one_process, place / "runs" / name)
    files = load_manifest(max((place / "runs" / name / "checkpoints").glob("step-*")))["files"]
    assert len(files) == ranks + 1


def test_another_world_size_and_strategy_carry_a_run_on(place):
    moves = [("ddp", 2, 15), ("zero3", 4, 25), ("fsdp2", 2, 30), ("zero1", 1, 40)]
    for name, parts in {"straight": [("ddp", 1, 40)], "moved": moves}.items():
        for strategy, ranks, steps in parts:
            more = ["schedule=constant", "train.micro_batch_size=2", f"train.steps={steps}", f"strategy={strategy}"]
            run(*tiny(name, *more), ranks=ranks, cwd=place)
    assert_close_runs(place / "runs" / "straight", place / "runs" / "moved")


def test_one_signal_to_one_of_two_ranks_stops_both_at_the_same_step(place):
    endless = ["train.steps=100000", "checkpoint.every=100000", "eval.every=0"]
    overrides = tiny("signalled", "train.micro_batch_size=4", *endless)
    directory = place / "runs" / "signalled"
    ranks = start(*overrides, ranks=2, cwd=place)
    wait_until(lambda: logged(directory) > 4, *ranks)
    ranks[1].send_signal(signal.SIGUSR1)
    assert end(ranks, 60) == [85, 85]
    [step] = (directory / "checkpoints").glob("step-*")
    assert len(load_manifest(step)["files"]) == 3
    assert json.loads((directory / "run.json").read_text())["exit"] == 85


def test_a_run_that_gets_no_better_ends_early_and_keeps_its_best_step(place):
    """The learning rate is far too large: after the first few steps the loss on held-out text rises."""
    more = ["optim.lr=0.1", "schedule=constant", "schedule.warmup_steps=10", "train.clip_norm=null", "train.steps=200"]
    more += ["eval.every=2", "eval.patience=3", "checkpoint.every=1000", "checkpoint.keep=1"]
    overrides = tiny("worse", *more)
    said = run(*overrides, cwd=place).stderr
    directory = place / "runs" / "worse"
    losses = column(directory, "loss", "validation")
    best, last = min(losses, key=losses.get), max(losses)
    assert 0 < best == last - 6 and last < 200
    assert "3 evaluations without a better loss: the run ends early (eval.patience)" in said
    assert f"best: loss {losses[best]:.4f} at step {best}" in said
    record = json.loads((directory / "run.json").read_text())
    assert (record["exit"], record["best_step"]) == (0, best)
    assert sorted(record["steps"]) == [f"step-{step:08d}" for step in (best, last)], "kept, whatever its age"
    lines = logged(directory)
    assert "ends early" in run(*overrides, cwd=place).stderr and logged(directory) == lines, "nothing is done again"
    run(*overrides, "eval.patience=null", f"train.steps={last + 2}", cwd=place)
    assert max(column(directory, "loss")) == last + 2


@pytest.mark.parametrize(
    ("overrides", "refusal"),
    [
        (["eval.every=0", "eval.patience=2"], r"eval.every=0: eval.patience needs evaluations; set it"),
        (["eval.samples=['\ud800']"], "has half a character"),
        (["eval.samples=[a]", "eval.sample_tokens=32"], "eval.sample_tokens=32: must be below data.seq_len=32"),
        (["model=encoder", "objective=masked_lm", "eval.samples=[a]"], "continues no text; leave them out"),
    ],
)
def test_what_evaluations_cannot_do_is_refused_before_anything_is_made(overrides, refusal):
    with pytest.raises(ConfigError, match=re.escape(refusal)):
        compose(tiny("refused", *overrides))


def test_samples_without_held_out_text_are_refused(place):
    held_out = ["data.prepare.held_out=0", *SAMPLED]
    said = run(*tiny("unheld", *held_out), code=2, cwd=place).stderr
    assert "data.prepare.held_out=0.0: nothing is held out, and eval.samples needs evaluations" in said


def test_questions_are_answered_at_each_evaluation_alike_on_two_ranks_and_afterwards(place):
    lines = [{"context": f"the {word}", "choices": [" time", " world", " is"], "answer": 1} for word in "abcdefg"]
    (place / "quiz.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    more = [
        "eval.choices=[quiz.jsonl]",
        "train.micro_batch_size=4",
        "train.steps=12",
        "eval.every=6",
        "checkpoint.every=12",
    ]
    found = []
    for ranks in (1, 2):
        said = run(*tiny(f"asked-{ranks}", *more), ranks=ranks, cwd=place).stdout
        directory = place / "runs" / f"asked-{ranks}"
        found.append(column(directory, "choices/quiz", "validation"))
        assert f"quiz {found[-1][12]:.1%}" in said
        assert json.loads((directory / "run.json").read_text())["choices"]["quiz"]["questions"] == 7
    assert found[0] == found[1] and list(found[0]) == [0, 6, 12]
    assert load(directory, device="cpu").evaluate(choices=[place / "quiz.jsonl"])["choices/quiz"] == found[0][12]
    refused = run(*tiny("none", "eval.choices=[nowhere.jsonl]"), code=2, cwd=place).stderr
    assert "eval.choices: nowhere.jsonl matches no file" in refused and not (place / "runs" / "none").exists()


def test_a_run_in_use_is_refused_by_name(place):
    overrides = tiny("busy", "train.steps=100000", "eval.every=0")
    [process] = start(*overrides, cwd=place)
    wait_until((place / "runs" / "busy" / "metrics.jsonl").exists, process)
    assert f"in use by pid {process.pid}" in run(*overrides, code=2, cwd=place).stderr
    process.kill()
    process.wait()


@pytest.mark.parametrize(
    ("override", "refusal"),
    [
        ("seed=2", "seed was 1 and is now 2"),
        ("data.seq_len=16", "data.seq_len was 32 and is now 16"),
        ("data.isolate_documents=false", "data.isolate_documents was True and is now False"),
        ("tokenizer.vocab_size=299", "tokenizer was"),
    ],
)
def test_another_data_order_is_refused_on_resume(place, uninterrupted, override, refusal):
    config, record = uninterrupted / "config.yaml", uninterrupted / "run.json"
    before, facts = config.read_text(), json.loads(record.read_text())
    overrides = tiny("uninterrupted", "model.dropout=0.1", "train.steps=30", override)
    assert refusal in run(*overrides, code=3, cwd=place).stderr
    assert config.read_text() == before, "a refused command leaves the run as it was"
    assert json.loads(record.read_text()) == facts


@pytest.mark.parametrize(
    ("override", "refusal"),
    [
        ("model.layers=3", "model.layers was 2 and is now 3"),
        ("model.heads=2", "model.heads was 4 and is now 2"),  # the same shapes, another network
        ("optim=muon", "optim was adamw and is now muon"),
    ],
)
def test_another_network_is_refused_on_resume(place, uninterrupted, override, refusal):
    overrides = tiny("uninterrupted", "model.dropout=0.1", "train.steps=30", override)
    assert refusal in run(*overrides, code=4, cwd=place).stderr


def test_fewer_steps_than_taken_are_refused(place, uninterrupted):
    refusal = run(*tiny("uninterrupted", "model.dropout=0.1", "train.steps=23"), code=2, cwd=place).stderr
    assert "train.steps=23: " in refusal and "step-00000024 is past it" in refusal


def test_a_resumed_run_says_which_settings_changed(place, tmp_path):
    where = f"run.root={tmp_path}"
    run(*tiny("changed", "train.steps=3", where), cwd=place)
    again = run(*tiny("changed", "train.steps=4", "objective.z_loss=1e-4", where), cwd=place).stderr
    changes = [line.split("last start: ")[1] for line in again.splitlines() if "last start" in line]
    assert changes == ["objective.z_loss: 0.0 -> 0.0001", "train.steps: 3 -> 4"]


def test_a_run_whose_gradients_stay_broken_stops_with_5(place):
    broken = tiny("broken", "optim.lr=1e30", "train.clip_norm=null", "train.max_skipped=2", "train.steps=60")
    refusal = run(*broken, code=5, cwd=place).stderr
    assert "updates in a row skipped" in refusal


def test_a_run_that_cannot_be_exported_says_so_at_its_start(place, uninterrupted):
    run(*tiny("sinusoidal", "model.positions=sinusoidal", "train.steps=4"), cwd=place)
    said = "pretrain.export will refuse this run"
    assert f"{said}: model.positions=sinusoidal: is not" in (place / "runs" / "sinusoidal" / "log.txt").read_text()
    assert said not in (uninterrupted / "log.txt").read_text()


def test_what_the_machine_cannot_do_is_refused_before_anything_is_made(place, tmp_path):
    refused = tiny("half", "strategy=zero2", "precision=fp16", f"run.root={tmp_path}")
    assert "precision=fp16: DeepSpeed has no fp16 on a CPU" in run(*refused, code=2, cwd=place).stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_as_single_does(place, one_process, precision):
    run(*tiny(precision, f"precision={precision}"), cwd=place)
    single, half = column(one_process, "loss"), column(place / "runs" / precision, "loss")
    assert abs(single[24] - half[24]) < 0.05
    assert half[24] < half[1] - 0.5


@pytest.mark.parametrize(
    ("override", "ranks"),
    [("strategy.activation_checkpointing=full", 1), ("attention=eager", 1)]
    + [pytest.param("compile=block", ranks, marks=pytest.mark.slow) for ranks in (1, 2)]
    + [(f"strategy={strategy}", 2) for strategy in ("zero2", "zero3", "fsdp2")],
)
def test_how_fast_does_not_change_what(place, one_process, override, ranks):
    name = f"{override.replace('=', '-')}-{ranks}"
    run(*tiny(name, "train.micro_batch_size=4", *SAMPLED, override), ranks=ranks, cwd=place)
    assert_close_runs(one_process, place / "runs" / name)

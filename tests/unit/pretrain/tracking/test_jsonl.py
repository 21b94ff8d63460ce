"""metrics.jsonl stays the record of one uninterrupted run, whatever kills it."""

import errno
import json
import math
import os
import resource
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pretrain.tracking.jsonl
from pretrain.errors import CheckpointError, ResourceError
from pretrain.tracking.base import Sample
from pretrain.tracking.jsonl import JsonlSink, SamplesSink, to_json

STEPS = 12


def records():
    """Yield the records of a run with training lines at every step and an evaluation every fourth."""
    for step in range(STEPS + 1):
        if step:
            yield {"step": step, "split": "train", "loss": 10 / 3 / step, "tokens": step * 64, "mfu": None}
        if step % 4 == 0:
            yield {"step": step, "split": "validation", "loss": 3.5 / (1 + step), "tokens": step * 64}


def write(path, after=-1):
    sink = JsonlSink(path)
    sink.truncate_after(after)
    for record in records():
        if record["step"] > after:
            sink.log(record)
    sink.close(0)


@given(killed_at=st.integers(0, 10_000), resumed=st.integers(0, STEPS))
def test_kill_at_any_byte_then_resume_equals_never_killed(killed_at, resumed):
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder, "whole.jsonl"), Path(folder, "killed.jsonl")
        write(whole)
        text = whole.read_bytes()
        # The checkpoint resumed from is older than the kill: all its lines are there.
        durable = sum(len(line) for line in text.splitlines(True) if json.loads(line)["step"] <= resumed)
        killed.write_bytes(text[: durable + killed_at % (len(text) - durable + 1)])
        write(killed, after=resumed)
        assert killed.read_bytes() == text


def test_lines_are_plain_json_and_readable_at_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    sink = JsonlSink(path)
    sink.log({"step": 1, "split": "train", "loss": math.nan, "grad_norm": math.inf, "lr": -math.inf, "mfu": None})
    line = json.loads(path.read_text(), parse_constant=pytest.fail)  # NaN as a bare word is not JSON
    assert line == {"step": 1, "split": "train", "loss": "NaN", "grad_norm": "Infinity", "lr": "-Infinity", "mfu": None}
    assert math.isnan(float(line["loss"])) and float(line["grad_norm"]) == math.inf


def test_numbers_that_json_does_not_have_are_strings_at_any_depth():
    value = {"é": [{"score": math.nan}, [-math.inf]], "text": "NaN", "count": 3, "flag": True, "no": None}
    line = to_json(value, ensure_ascii=False)
    assert line.startswith('{"é"')
    expected = value | {"é": [{"score": "NaN"}, ["-Infinity"]]}
    assert json.loads(line, parse_constant=pytest.fail) == json.loads(to_json(value)) == expected


def test_floats_come_back_bit_for_bit(tmp_path):
    losses = [0.1 + 0.2, 1 / 3, 2**-1074, 1.7976931348623157e308]
    sink = JsonlSink(tmp_path / "m")
    for step, loss in enumerate(losses):
        sink.log({"step": step, "loss": loss})
    assert [json.loads(line)["loss"] for line in (tmp_path / "m").read_text().splitlines()] == losses


def test_nothing_to_drop_leaves_the_file_alone(tmp_path):
    path = tmp_path / "m"
    write(path)
    inode = path.stat().st_ino
    JsonlSink(path).truncate_after(STEPS)
    assert path.stat().st_ino == inode


def test_a_left_over_temporary_file_is_harmless(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path)
    (tmp_path / ".metrics.jsonl.tmp").write_text("half of a killed truncation")
    write(path, after=5)
    whole = tmp_path / "whole"
    write(whole)
    assert path.read_bytes() == whole.read_bytes()


def test_a_foreign_line_in_the_middle_is_refused_by_name(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\ngarbage\n{"step": 2}\n')
    with pytest.raises(CheckpointError, match=r"metrics.jsonl:2: b'garbage"):
        JsonlSink(path).truncate_after(1)
    assert path.read_text().count("\n") == 3


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")
def test_a_full_disk_is_a_resource_error():
    with pytest.raises(ResourceError, match="free space"):
        JsonlSink(Path("/dev/full")).log({"step": 1})


def test_lines_that_cannot_be_appended_or_dropped_are_a_resource_error(tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "skips.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')
    sink = JsonlSink(path)
    monkeypatch.setattr(pretrain.tracking.jsonl, "replace_file", full)
    with pytest.raises(ResourceError, match=r"skips\.jsonl: cannot be written \(.*No space left"):
        sink.truncate_after(1)
    assert path.read_text().count("\n") == 2
    path.unlink()
    path.mkdir()
    with pytest.raises(ResourceError, match=r"skips\.jsonl: cannot be written \(.*Is a directory"):
        JsonlSink(path)


def write_samples(path, start, last):
    sink = SamplesSink(path, start or -1)
    for step in range(start, last + 1, 4):
        if step > start or start == 0:
            sink.sampled(step, [Sample("é \n", f"{step}\u2028\x1b"), Sample("", "")])
        sink.log({"step": step, "split": "train"})
    sink.close(0)


@pytest.mark.parametrize("killed_at", [1, 70, 100, 2000])
def test_samples_are_those_of_a_run_that_was_never_killed(tmp_path, killed_at):
    whole, killed, begun = (tmp_path / name for name in ("whole", "killed", "begun"))
    write_samples(whole, 0, 12)
    lines = [json.loads(line) for line in whole.read_text().splitlines()]
    pairs = [("é \n", "{}\u2028\x1b"), ("", "")]
    expected = [(step, prompt, text.format(step)) for step in (0, 4, 8, 12) for prompt, text in pairs]
    assert [(line["step"], line["prompt"], line["continuation"]) for line in lines] == expected
    write_samples(killed, 0, 4)
    killed.write_bytes(killed.read_bytes() + whole.read_bytes()[len(killed.read_bytes()) :][:killed_at])
    write_samples(killed, 4, 12)
    assert killed.read_bytes() == whole.read_bytes()
    write_samples(begun, 0, 8)
    write_samples(begun, 0, 12)  # from the start: nothing was saved
    assert begun.read_bytes() == whole.read_bytes()


def test_a_run_without_samples_has_no_file_of_them(tmp_path):
    sink = SamplesSink(tmp_path / "samples.jsonl", -1)
    sink.log({"step": 1, "split": "train"})
    sink.close(0)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_is_named_and_what_did_not_fit_does_not_come_back(tmp_path):
    path, limit = tmp_path / "metrics.jsonl", resource.getrlimit(resource.RLIMIT_FSIZE)
    sink = JsonlSink(path)
    sink.log({"step": 1})
    size = path.stat().st_size
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 4, limit[1]))
        for _ in range(2):
            with pytest.raises(ResourceError, match=r"metrics\.jsonl: cannot be written \(.*File too large"):
                sink.log({"step": 2})
        sink.close(8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert path.read_bytes() == b'{"step": 1}\n{"st'
    again = JsonlSink(path)
    again.truncate_after(1)
    again.log({"step": 2})
    again.close(0)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'

"""Whatever is done to a corpus, a checkpoint or a run: the same run, a word, or a refusal; see `support/forgeries`."""

import hashlib
import itertools
import json
import os
import time

import pytest
from forgeries import CORPUS, RUN, STEPS, Laboratory, chdir, exchange_tokens, forge_shard, left, train, write_json

from pretrain.errors import CheckpointError, ConfigError, DataError
from pretrain.train.run_dir.record import read_record


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory):
    return Laboratory(tmp_path_factory.mktemp("laboratory"))


@pytest.fixture
def resumed(laboratory):
    """What a resume leaves where nothing was touched. Named before `place`, whose folder it uses."""
    return laboratory.reference("resume")[0]


@pytest.fixture
def place(laboratory):
    """A copy of the untouched corpus and runs, where the test then works."""
    with chdir(laboratory.copy()):
        yield


HOUR_S = 3600
SEEDS = range(1000, 1025)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_forgery_ends_as_another_run_without_a_word(laboratory, seed):
    what, outcome = laboratory.draw(seed)
    assert outcome.kind in {"same", "said", "refused"}, f"{what}: {outcome.words}"


def test_two_tokens_exchanged_are_refused_and_the_runs_own_tokenizer_stays(place):
    before = (RUN / "tokenizer.json").read_bytes()
    exchange_tokens(CORPUS / "tokenizer.json")
    with pytest.raises(DataError, match=r"corpus/tokenizer\.json: another tokenizer"):
        train(STEPS + 2)
    (CORPUS / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"corpus/tokenizer\.json: not a readable tokenizer"):
        train(STEPS + 2)
    assert (RUN / "tokenizer.json").read_bytes() == before


class Agrees:
    """A draw after which the manifest agrees with all of a forgery."""

    def random(self):
        return 0.4

    def choice(self, of):
        return of[0]


def test_a_forged_corpus_is_another_one_that_only_a_recorded_waiver_goes_on_with(place):
    forge_shard(Agrees(), "resume")
    with pytest.raises(DataError, match=r"the corpus of data\.sources\.prepared was .*data\.accept_changed=true"):
        train(STEPS + 2)
    assert "notes" not in read_record(RUN)
    train(STEPS + 2, "data.accept_changed=true")
    [note] = read_record(RUN)["notes"]
    assert note.startswith(f"data.accept_changed=true: from step {STEPS} on the corpus of data.sources.prepared is ")
    train(STEPS + 4)
    assert read_record(RUN)["notes"] == [note]


def test_lost_metrics_are_noted(place):
    lines = (RUN / "metrics.jsonl").read_text().splitlines(keepends=True)
    (RUN / "metrics.jsonl").write_text("".join(lines[:2] + lines[3:]))
    train(STEPS + 2)
    [note] = read_record(RUN)["notes"]
    assert f"up to step {STEPS} than there are: {len(lines) - 1} of {len(lines)}, the last of step {STEPS}" in note


def test_a_lost_record_is_noted(place):
    (RUN / "run.json").unlink()
    train(STEPS + 2)
    [note] = json.loads((RUN / "run.json").read_text())["notes"]
    assert "run.json is gone beside config.yaml" in note


def test_a_later_format_is_refused_and_survives(place):
    step = RUN / "checkpoints" / "step-00000004"
    manifest = step / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(CheckpointError, match=r"step-00000004/manifest\.json: format 2; .* move the step away"):
        train(STEPS + 2)
    assert step.is_dir()


def test_a_step_that_was_replaced_is_passed_over_and_steps_that_are_gone_are_missed(place, caplog):
    steps = sorted((RUN / "checkpoints").iterdir())
    for file in steps[1].iterdir():
        file.write_bytes((steps[0] / file.name).read_bytes())
    train(STEPS + 2)
    assert "step-00000004 is skipped" in caplog.text


def test_other_weights_are_passed_over_although_their_manifest_agrees(place, caplog):
    step = RUN / "checkpoints" / "step-00000004"
    [file] = step.glob("*.safetensors")
    data = bytearray(file.read_bytes())
    data[-3] ^= 64
    file.write_bytes(data)
    about = json.loads((step / "manifest.json").read_text())
    about["files"][file.name]["sha256"] = hashlib.sha256(data).hexdigest()
    write_json(step / "manifest.json", about, "sealed")
    train(STEPS + 2)
    assert "step-00000004 is skipped: manifest.json: not the one that the run committed" in caplog.text


def test_links_and_other_things_where_a_run_writes_are_refused_by_name(place, tmp_path):
    for name in ("log.txt", "metrics.jsonl", "checkpoints"):
        (RUN / name).rename(tmp_path / name)
        (RUN / name).symlink_to(tmp_path / name)
        with pytest.raises(ConfigError, match=rf"runs/first/{name} is a link to"):
            train(STEPS + 2)
        (RUN / name).unlink()
        (tmp_path / name).rename(RUN / name)


def test_a_clock_that_jumps_and_times_of_files_that_lie_change_nothing(resumed, place, monkeypatch):
    steps = sorted((RUN / "checkpoints").iterdir())
    assert len(steps) > 1
    for age, step in enumerate(steps):
        os.utime(step, (time.time() - age * HOUR_S,) * 2)  # the newest step looks the oldest
    now, jumps = time.time(), itertools.cycle([HOUR_S, -HOUR_S, 0])
    monkeypatch.setattr(time, "time", lambda: now + next(jumps))
    train(STEPS + 2)
    assert left("resume", "") == resumed
    rows = [json.loads(line) for line in (RUN / "metrics.jsonl").read_text().splitlines()]
    assert all(row["step_s"] > 0 for row in rows if row.get("step_s") is not None)


def test_what_lies_beside_the_steps_is_no_pointer(resumed, place):
    for name, content in (("latest", "step-00000099"), ("latest.txt", "2"), ("step-00000099.tmp", "")):
        (RUN / "checkpoints" / name).write_text(content)
    (RUN / "checkpoints" / "newest").symlink_to("step-00000002")
    train(STEPS + 2)
    assert left("resume", "") == resumed

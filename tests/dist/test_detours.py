"""Detours and replays of whole runs: what is equal to what, who is refused, and who is to blame."""

import json
import os
import re
import shutil
import signal

import pytest
from forks import Forked
from poisoned import FLIPPED, POISONED
from ranks import column, end, environments, run, tiny

from pretrain import detour, replay
from pretrain.train.run_dir.base import RunConfig, RunDirectory

WATCHED = ["model.dropout=0.1", "checkpoint.keep=3", "divergence.rise=0.5", "divergence.lines=2", "divergence.rewind=5"]
DETOUR = "divergence.action=detour"


def poisoned(*overrides, cwd, ranks=1, code=0, steps="13:16"):
    own = environments(ranks) if ranks > 1 else [{}]
    started = [Forked("-c", POISONED, *overrides, cwd=cwd, env=os.environ | {"POISONED": steps} | more) for more in own]
    assert end(started) == [code] * ranks, started[0].stderr[-3000:]
    return started[0].stderr


def last_step(directory):
    """Return the files of the last step, without what says where metrics stand."""
    step = max((directory / "checkpoints").glob("step-*"))
    return {path.name: path.read_bytes() for path in step.glob("*.safetensors")}


def state_of(directory):
    """Return what the last step holds beside tensors, without the mark of the metrics, which have times in them."""
    state = json.loads((max((directory / "checkpoints").glob("step-*")) / "state.json").read_text())
    return {key: value for key, value in state.items() if key != "metrics"}


@pytest.fixture(scope="module")
def detoured(place):
    """A run that met bad data at its 14th step, and the words that it was told."""
    said = poisoned(*tiny("detoured", *WATCHED, DETOUR, "log.trace=4"), cwd=place)
    return place / "runs" / "detoured", said


def entries(directory):
    detours = json.loads((directory / "detours.json").read_text())["detours"]
    return [(each["step"], each["first"], each["end"], each["automatic"]) for each in detours]


def test_a_run_detours_as_one_that_was_told_to(place, detoured):
    automatic, said = detoured
    assert "warning: detour 1: step 15: the loss diverges" in said and "around data steps 13 to 14" in said
    assert entries(automatic) == [(10, 13, 15, True)]
    notes = json.loads((automatic / "run.json").read_text())["notes"]
    assert len(notes) == 1 and "back to step 10" in notes[0]
    aside = automatic / "checkpoints" / "put-aside-1"
    assert len(column(automatic, "loss")) == 24 and json.loads((aside / "metrics.jsonl").read_text().splitlines()[-1])

    stopped = poisoned(*tiny("told", *WATCHED), cwd=place, code=5)
    assert "step 15: the loss diverges" in stopped and "python -m pretrain.replay" in stopped
    told = place / "runs" / "told"
    run(str(told), "--rewind", "4", "--skip", "13:15", cwd=place, program="pretrain.detour")
    assert entries(told) == [(10, 13, 15, False)]
    poisoned(*tiny("told", *WATCHED), cwd=place)
    assert last_step(told) == last_step(automatic)
    assert column(told, "loss") == column(automatic, "loss")
    clean = place / "runs" / "uninterrupted"
    assert not clean.exists() or column(clean, "loss") != column(told, "loss")


def test_a_detoured_run_resumes_as_if_it_had_not_stopped(place, detoured):
    copy = place / "runs" / "detoured_on"
    shutil.copytree(detoured[0], copy)
    shutil.rmtree(copy / "checkpoints" / "step-00000024")
    said = poisoned(*tiny("detoured_on", *WATCHED, DETOUR, "log.trace=4"), cwd=place)
    assert "resuming from" in said
    assert last_step(copy) == last_step(detoured[0])
    assert state_of(copy) == state_of(detoured[0])
    assert len(state_of(copy)["divergence"]["losses"]) == 23  # of 24 lines one was too high
    assert (copy / "trace.jsonl").read_text() == (detoured[0] / "trace.jsonl").read_text()
    assert column(copy, "loss") == column(detoured[0], "loss")


# Killed in a rewind: when later steps are put aside, when the detour is recorded, or behind that.
KILLED = """
import os, signal
from pretrain.train.detours import rewinding
from pretrain.train.run_dir.base import RunDirectory

def killing(function, at):
    calls = []
    def killed(*args, **options):
        calls.append(args)
        if len(calls) == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **options)
    return killed

place, at = os.environ["KILLED"].split()
owner = RunDirectory if place == "note" else rewinding
setattr(owner, place, killing(getattr(owner, place), int(at)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kill", ["fsync_path 1", "add_detour 1", "note 1"])
def test_a_run_killed_amid_a_rewind_takes_it_all_the_same(place, detoured, kill):
    name = "rewound_" + kill.replace(" ", "_")
    words = tiny(name, *WATCHED, DETOUR, "log.trace=4", "checkpoint.every=4")
    env = os.environ | {"POISONED": "13:16", "KILLED": kill}
    assert Forked("-c", KILLED + POISONED, *words, cwd=place, env=env).wait() == -signal.SIGKILL
    poisoned(*words, cwd=place)
    whole = tiny("rewound", *WATCHED, DETOUR, "log.trace=4", "checkpoint.every=4")
    if not (place / "runs" / "rewound").exists():
        poisoned(*whole, cwd=place)
    expected, found = place / "runs" / "rewound", place / "runs" / name
    assert entries(found)[-1] == entries(expected)[-1] == (8, 13, 15, True)
    assert last_step(found) == last_step(expected)
    assert column(found, "loss") == column(expected, "loss")


def test_a_branch_goes_around_what_its_origin_went_around(place, detoured):
    origin, _ = detoured
    poisoned("run.name=branched", "branch_from=runs/detoured@20", "log.every=1", "checkpoint.every=5", cwd=place)
    assert entries(place / "runs" / "branched") == entries(origin)
    assert last_step(place / "runs" / "branched") == last_step(origin)
    fresh = ["run.name=branched_fresh", "branch_from=runs/detoured@20", "branch.data=fresh", "train.steps=22"]
    poisoned(*fresh, cwd=place)
    assert not (place / "runs" / "branched_fresh" / "detours.json").exists(), "other data have none"


def test_other_detours_are_refused_by_name(place, detoured):
    copy = place / "runs" / "without"
    shutil.copytree(detoured[0], copy)
    (copy / "detours.json").rename(copy / "gone.json")
    said = poisoned(*tiny("without", *WATCHED, DETOUR, "train.steps=30"), cwd=place, code=3)
    assert "detours was [[10, 13, 15]] and is now []" in said


def test_what_the_door_refuses(place, detoured, capsys):
    directory, before = detoured[0], (detoured[0] / "detours.json").read_bytes()

    def refused(run, *words):
        assert detour.main([str(run), *words]) == 2
        return capsys.readouterr().err

    assert "begins before data step 17" in refused(directory, "--rewind", "9", "--skip", "16:19")
    assert "saved are 15, 20, 24" in refused(directory, "--rewind", "10", "--skip", "40:50")
    assert "--skip 40-50: must be two data steps" in refused(directory, "--rewind", "1", "--skip", "40-50")
    assert "--rewind=-1: 0 or more" in refused(directory, "--rewind=-1", "--skip", "40:50")
    held = RunDirectory.claim(RunConfig(name="detoured", root=str(place / "runs")))
    assert "is in use by" in refused(directory, "--rewind", "1", "--skip", "40:50")
    held.close()
    assert "not readable" in refused(place, "--rewind", "1", "--skip", "40:50")
    assert (directory / "detours.json").read_bytes() == before
    assert len([*(directory / "checkpoints").glob("step-*")]) == 3


@pytest.mark.slow
def test_a_run_takes_so_many_detours_and_no_more(place):
    said = poisoned(*tiny("bounded", *WATCHED, DETOUR, "divergence.max_detours=2"), cwd=place, steps="13:60", code=5)
    assert "divergence.max_detours=2 are taken (13:15 from step 10, 15:17 from step 10)" in said
    assert entries(place / "runs" / "bounded") == [(10, 13, 15, True), (10, 15, 17, True)]


@pytest.mark.slow
@pytest.mark.parametrize("origin", [(), ("init_from=runs/first",)], ids=["random", "pretrained"])
def test_before_the_first_save_a_run_goes_back_to_its_first_weights(place, origin):
    name = f"from_{len(origin)}"
    settings = ["divergence.rise=0.05", "divergence.lines=1", "train.steps=9", "checkpoint.every=8", *origin]
    poisoned(*tiny(name, *WATCHED, DETOUR, *settings), cwd=place, steps="4:6")
    run_dir = place / "runs" / name
    assert entries(run_dir) == [(0, 4, 5, True), (0, 5, 6, True)]
    losses = column(run_dir, "loss")
    assert len(losses) == 9
    before = [json.loads(line) for line in (run_dir / "checkpoints/put-aside-1/metrics.jsonl").read_text().splitlines()]
    first = next(line for line in before if line["split"] == "train")
    assert (losses[1] < 5.69) == bool(origin), "a pretrained model is better from the first step on"
    assert losses[1] == first["loss"]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "zero3", "fsdp2"])
def test_all_ranks_take_a_detour_together(place, detoured, strategy):
    name = f"together_{strategy}"
    settings = tiny(name, *WATCHED, DETOUR, "model.dropout=0", f"strategy={strategy}", "train.micro_batch_size=2")
    poisoned(*settings, cwd=place, ranks=2)
    alone = tiny("together", *WATCHED, DETOUR, "model.dropout=0")
    if not (place / "runs" / "together").exists():
        poisoned(*alone, cwd=place)
    together = place / "runs" / name
    assert entries(together) == entries(place / "runs" / "together") == [(10, 13, 15, True)]
    losses = column(place / "runs" / "together", "loss")
    assert column(together, "loss") == pytest.approx(losses, rel=1e-5)


@pytest.mark.slow
def test_a_replay_on_other_ranks_agrees_and_names_a_flipped_bit(place):
    long = [
        "train.steps=60",
        "checkpoint.every=10",
        "checkpoint.keep=9",
        "eval.every=0",
        "log.trace=10",
        "optim.lr=3e-4",
    ]
    run(*tiny("sound", *long, "log.every=60"), cwd=place)
    flip = "+hooks.flipping={step:34,weight:final_norm.weight,bit:23}"  # twice or half of what it was
    flipped = Forked("-c", FLIPPED, *tiny("bit_flipped", *long, flip), cwd=place, env=dict(os.environ))
    assert flipped.wait() == 0, flipped.stderr[-3000:]
    before = {path: path.read_bytes() for path in (place / "runs" / "sound").rglob("*") if path.is_file()}

    def replayed(name, *words, first=10, code=0, ranks=2):
        more = [f"runs/{name}", "--from", str(first), "--to", "60", *words]
        return run(*more, cwd=place, ranks=ranks, program="pretrain.replay", code=code)

    elsewhere = ["--set", "strategy=zero2", "--set", "train.micro_batch_size=2"]
    agreed = replayed("sound", *elsewhere).stdout
    assert "50 recorded steps from 11 to 60 agree" in agreed
    differences = re.search(r"losses to (\S+) .*norms to (\S+) ", agreed)
    assert differences and max(map(float, differences.groups())) < 1e-5, agreed
    assert "begun at the saved step 10" in replayed("sound", first=12, ranks=1).stdout
    said = replayed("bit_flipped", "--set", "train.micro_batch_size=4", code=5).stderr
    assert "step 35 differs: " in said and "steps 11 to 34 agree" in said and "hardware or software" in said
    assert before == {path: path.read_bytes() for path in (place / "runs" / "sound").rglob("*") if path.is_file()}


def test_what_a_replay_refuses(detoured, capsys):
    def refused(*words):
        assert replay.main([str(detoured[0]), *words]) == 2
        return capsys.readouterr().err

    assert "--to=5: must be above --from=7" in refused("--from", "7", "--to", "5")
    assert "the run has 24 steps" in refused("--from", "15", "--to", "25")
    assert "--set optim.lr=1: makes it another run" in refused("--from", "15", "--to", "20", "--set", "optim.lr=1")
    said = refused("--from", "15", "--to", "20", "--set", "train.micro_batch_size=4")
    assert "model.dropout=0.1: it is drawn by rank and micro-batch" in said and "train.micro_batch_size=8" in said

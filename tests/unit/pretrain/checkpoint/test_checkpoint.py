"""Checkpoints: what comes back is what went in, and what is torn, flipped, foreign or hostile is never chosen."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from corpora import edit_json
from safetensors.torch import load_file
from toys import ALONE, ToyObjective, assert_same, state_of, take_step, toy_strategy

from pretrain.checkpoint.load import load_manifest, load_state, newest_step, restore, restore_weights, shapes_of
from pretrain.checkpoint.save import CheckpointConfig, Checkpoints
from pretrain.errors import CheckpointError, ResourceError
from pretrain.optim.muon import MuonConfig

SUPPORT = Path(__file__).parents[3] / "support"


@pytest.fixture
def trained(tmp_path):
    """Three committed steps of a toy run."""
    module, strategy = toy_strategy()
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(keep=3, asynchronous=False), ALONE)
    for step in (1, 2, 3):
        take_step(module, strategy, seed=step)
        checkpoints.save(step, strategy, {"tokens": 11 * step})
    return module, strategy, checkpoints


@pytest.mark.parametrize("optim", [None, MuonConfig(lr=1e-2)])
def test_what_is_restored_is_what_was_saved_and_the_next_step_is_equal(tmp_path, optim):
    module, strategy = toy_strategy(optim=optim)
    for seed in range(3):
        take_step(module, strategy, seed)
    module.model.scale.fill_(2.5)
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(asynchronous=False), ALONE)
    checkpoints.save(3, strategy, {"tokens": 33})

    other, resumed = toy_strategy(optim=optim)
    restore(newest_step(checkpoints.directory, ALONE), shapes_of(other), resumed)
    assert_same(state_of(module, strategy), state_of(other, resumed))
    assert other.model.head.weight is other.model.embedding.weight
    take_step(module, strategy, 9)
    take_step(other, resumed, 9)
    assert_same(state_of(module, strategy), state_of(other, resumed))


def test_weights_alone(trained):
    module, _, checkpoints = trained
    other = ToyObjective()
    restore_weights(newest_step(checkpoints.directory, ALONE), other)
    assert_same(module.state_dict(), other.state_dict())


def test_the_files_are_plain_safetensors_and_json(trained):
    module, strategy, checkpoints = trained
    step = newest_step(checkpoints.directory, ALONE)
    [file] = step.glob("*.safetensors")
    tensors = load_file(file)
    weight = module.model.blocks[0].weight
    assert torch.equal(tensors["weight/model.blocks.0.weight/0"].view(5, 5), weight)
    assert torch.equal(
        tensors["exp_avg/model.blocks.0.weight/0"].view(5, 5), strategy.optimizer.state[weight]["exp_avg"]
    )
    assert not [key for key in tensors if "head" in key], "the tied tensor is stored once"
    assert load_state(step) == {"tokens": 33, "step": 3, "strategy": {}, "best": None}


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def edit_manifest(step: Path, change) -> None:
    edit_json(step / "manifest.json", change)


def fragment_file(step: Path) -> Path:
    return next(step.glob("*.safetensors"))


def list_outside(manifest, name):
    entry = manifest["files"].pop(next(iter(manifest["files"])))
    manifest["files"][name] = entry


DAMAGE = {
    "missing shard": lambda step: fragment_file(step).unlink(),
    "torn shard": lambda step: os.truncate(fragment_file(step), fragment_file(step).stat().st_size - 1),
    "flipped bit": lambda step: flip_bit(fragment_file(step)),
    "flipped state": lambda step: flip_bit(step / "state.json"),
    "no manifest": lambda step: (step / "manifest.json").unlink(),
    "torn manifest": lambda step: os.truncate(step / "manifest.json", 100),
    "path outside": lambda step: edit_manifest(step, lambda m: list_outside(m, "../../x")),
    "absolute path": lambda step: edit_manifest(step, lambda m: list_outside(m, "/etc/passwd")),
    "no format of ours": lambda step: edit_manifest(step, lambda m: m.update(format=0)),
    "of another step": lambda step: edit_manifest(step, lambda m: m.update(step=2)),
    "edited manifest": lambda step: (step / "manifest.json").write_text(
        (step / "manifest.json").read_text().replace('"exp_avg"', '"exp_avh"')
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_step_is_passed_over_by_name(trained, damage, caplog):
    _, _, checkpoints = trained
    DAMAGE[damage](checkpoints.directory / "step-00000003")
    assert newest_step(checkpoints.directory, ALONE) == checkpoints.directory / "step-00000002"
    assert "step-00000003 is skipped" in caplog.text


def test_nothing_begins_again_by_itself_when_every_step_is_damaged(trained):
    _, _, checkpoints = trained
    for step in checkpoints.directory.iterdir():
        DAMAGE["flipped bit"](step)
    with pytest.raises(CheckpointError, match="none of its 3 steps verifies"):
        newest_step(checkpoints.directory, ALONE)


def test_a_step_that_claims_tensors_with_gaps_is_refused(trained):
    _, _, checkpoints = trained
    step = newest_step(checkpoints.directory, ALONE)

    def shorten(manifest):
        manifest["tensors"]["model.embedding.weight"]["weight"]["fragments"][0][2] -= 1

    edit_manifest(step, shorten)
    with pytest.raises(CheckpointError, match=r"weight of model.embedding.weight ends at element 34 of 35"):
        restore(step, shapes_of(ToyObjective()), toy_strategy()[1])


def test_another_architecture_is_listed(trained):
    _, _, checkpoints = trained
    module, strategy = toy_strategy()
    module.model.blocks.append(torch.nn.Linear(5, 4))
    module.model.blocks[0].bias = torch.nn.Parameter(torch.zeros(6))
    with pytest.raises(CheckpointError) as refusal:
        restore(newest_step(checkpoints.directory, ALONE), shapes_of(module), strategy)
    for part in (
        "missing model.blocks.1.bias (4,)",
        "model.blocks.0.bias is (5,), the model's (6,)",
        "3 tensors differ",
    ):
        assert part in str(refusal.value)


def test_retention_keeps_the_newest(trained):
    _, strategy, checkpoints = trained
    checkpoints.cfg.keep = 2
    checkpoints.save(4, strategy, {})
    assert sorted(path.name for path in checkpoints.directory.iterdir()) == ["step-00000003", "step-00000004"]


def test_milestones_the_best_and_the_last_stay_whatever_follows(tmp_path):
    module, strategy = toy_strategy()
    cfg = CheckpointConfig(keep=1, every=1, keep_every=4, asynchronous=False)
    checkpoints = Checkpoints(tmp_path, cfg, ALONE)
    for step in range(1, 11):
        take_step(module, strategy, seed=step)
        checkpoints.save(step, strategy, {}, value=-abs(step - 3))  # step 3 is the best
    assert [int(path.name[-2:]) for path in sorted(checkpoints.directory.iterdir())] == [3, 4, 8, 10]
    assert newest_step(checkpoints.directory, ALONE).name == "step-00000010"


@pytest.mark.parametrize(
    ("every", "said"), [(-1, "0 (no milestones)"), (25, "must be a multiple of checkpoint.every=10")]
)
def test_milestones_that_would_not_be_saved_are_refused(every, said):
    with pytest.raises(ValueError, match=rf"checkpoint\.keep_every={every}: {re.escape(said)}"):
        CheckpointConfig(every=10, keep_every=every)


def test_retention_never_prefers_a_damaged_later_step(trained):
    _, strategy, checkpoints = trained
    DAMAGE["flipped bit"](checkpoints.directory / "step-00000003")
    checkpoints.cfg.keep = 1
    checkpoints.save(2, strategy, {"tokens": 22})
    assert newest_step(checkpoints.directory, ALONE) == checkpoints.directory / "step-00000002"


def test_saving_a_step_again_replaces_it(trained):
    _, strategy, checkpoints = trained
    shutil.rmtree(checkpoints.directory / "step-00000003")
    (checkpoints.directory / "step-00000003").mkdir()
    checkpoints.save(3, strategy, {"tokens": 5})
    assert load_state(newest_step(checkpoints.directory, ALONE))["tokens"] == 5


# Processes that save, each of which dies at the n-th call of one function: kill -9 at every phase of the protocol.
# They are forks of one that has imported everything; arguments are a folder and the list of cases.
KILLED = """
import json, os, signal, sys
from pathlib import Path
import pretrain.checkpoint.save, pretrain.checkpoint.fragments
from toys import ALONE, take_step, toy_strategy
from pretrain.checkpoint.save import CheckpointConfig, Checkpoints

def die_at(owner, function, last_call):
    real, calls = getattr(owner, function), 0

    def counted(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == last_call:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)

    setattr(owner, function, counted)

def save(directory, asynchronous, function, last_call):
    module, strategy = toy_strategy()
    checkpoints = Checkpoints(directory, CheckpointConfig(asynchronous=asynchronous), ALONE)
    take_step(module, strategy, 1)
    checkpoints.save(1, strategy, {"tokens": 11}, required=True)
    take_step(module, strategy, 2)
    owner = {"fsync": os, "rename": Path, "mkdir": Path, "bytes_of": pretrain.checkpoint.fragments}[function]
    die_at(owner, function, last_call)
    checkpoints.save(2, strategy, {"tokens": 22})
    take_step(module, strategy, 3)
    checkpoints.settle(wait=True)
    os._exit(0)

toy_strategy()  # what engines import on first use
for number, case in enumerate(json.loads(sys.argv[2])):
    child = os.fork()
    if not child:
        save(Path(sys.argv[1], str(number)), *case)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

PHASES = [
    ("mkdir", 1, 1),  # before anything is written
    ("bytes_of", 4, 1),  # in the middle of the fragment file
    ("fsync", 1, 1),  # the fragment file is written, not synced
    ("fsync", 2, 1),  # fragments are there, the state is not synced
    ("fsync", 3, 1),  # the manifest is written, not synced
    ("rename", 1, 1),  # everything is there, not renamed
    ("fsync", 5, 2),  # renamed, the parent directory not synced
    ("fsync", 99, 2),  # after the commit
]
CASES = [(asynchronous, *phase) for asynchronous in (False, True) for phase in PHASES]


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A folder with the directory of checkpoints that each case left, by its number."""
    place = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-c", KILLED, str(place), json.dumps([case[:3] for case in CASES])]
    done = subprocess.run(command, capture_output=True, text=True, cwd=SUPPORT, timeout=240)
    codes = [0 if call == 99 else -9 for _, _, call, _ in CASES]
    assert [int(line) for line in done.stdout.split()] == codes, done.stderr
    return place


@pytest.mark.parametrize("number", range(len(CASES)), ids=["-".join(map(str, case)) for case in CASES])
def test_killed_at_every_phase_of_a_save(killed, number):
    survivor = CASES[number][3]
    checkpoints = Checkpoints(killed / str(number), CheckpointConfig(), ALONE)
    checkpoints.begin()
    assert not list(checkpoints.directory.glob(".tmp-*")), "what the kill left is cleaned"
    newest = newest_step(checkpoints.directory, ALONE)
    assert load_state(newest)["tokens"] == 11 * survivor

    module, strategy = toy_strategy()
    for step in range(1, survivor + 1):
        take_step(module, strategy, step)
    other, resumed = toy_strategy()
    restore(newest, shapes_of(other), resumed)
    assert_same(state_of(module, strategy), state_of(other, resumed))


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from toys import ALONE, toy_strategy, take_step
from pretrain.checkpoint.save import CheckpointConfig, Checkpoints

module, strategy = toy_strategy()
take_step(module, strategy, 1)
cfg = CheckpointConfig(asynchronous=sys.argv[2] == "True", max_failures=2)
checkpoints = Checkpoints(Path(sys.argv[1]), cfg, ALONE)
checkpoints.save(1, strategy, {"tokens": 11}, required=True)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # files cannot grow beyond this: writes fail as on a full disk
checkpoints.save(2, strategy, {})
checkpoints.settle(wait=True)
print("training went on", flush=True)
for step, required in ((3, False), (4, True)):
    try:
        checkpoints.save(step, strategy, {}, required=required)
        checkpoints.settle(wait=True)
    except Exception as error:
        print(type(error).__name__, error, flush=True)
    checkpoints.failures = 0
"""


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_full_disk_keeps_the_old_step_and_stops_after_repeated_failures(tmp_path, asynchronous):
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path), str(asynchronous)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=SUPPORT, timeout=120)
    assert "training went on" in done.stdout, done.stderr
    assert ResourceError.__name__ in done.stdout
    assert "step 3 could not be saved" in done.stdout
    assert "failure 2 in a row" in done.stdout
    assert "step 4 could not be saved" in done.stdout, "the last save must not fail in silence"
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_a_manifest_is_needed(tmp_path):
    with pytest.raises(CheckpointError, match="never committed"):
        load_manifest(tmp_path)

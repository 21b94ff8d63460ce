"""Runs that are asked to stop, before they train and while they do, asked again while they save, and killed."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from forks import Forked
from ranks import column, launched, process_of, run, tiny, wait_until
from terminals import CTRL_C, Terminal
from test_pretrain import assert_equal_runs, logged
from waiting import until

from pretrain.checkpoint.load import load_manifest, load_state
from pretrain.commands import HANDLED
from pretrain.compose import compose
from pretrain.errors import Preempted
from pretrain.run import pretrain

pytestmark = pytest.mark.timeout(900)  # s; many processes on few cores, and others may use them too

# Large enough for a save to take a while; and FSDP2 sums gradients in the same order before and after a resume, where
# DistributedDataParallel forms other buckets in the first step of a process, which shows from three ranks on.
WIDE = ["strategy=fsdp2", "train.micro_batch_size=2", "model.width=256", "model.layers=4", "model.dropout=0.1"]
STEPS = ["train.steps=24", "checkpoint.every=1000", "eval.every=12"]
ENDLESS = ["train.steps=100000", "checkpoint.every=100000", "eval.every=0", "train.micro_batch_size=2"]


def launch(directory: Path, *overrides: str):
    """Start four ranks, and return their launcher once some steps more than before are logged."""
    before = logged(directory)
    place = directory.parents[1]
    launcher = launched(*tiny(directory.name, *overrides), ranks=4, logs=directory / "ranks", cwd=place)
    wait_until(lambda: logged(directory) >= before + 4, launcher)
    return launcher


def the_one_step(directory: Path, launcher) -> int:
    """Return the step that four ranks saved when they were asked to stop: the last one of which anything was done."""
    err = launcher.communicate(timeout=120)[1]
    assert launcher.returncode == 85, err
    *_, step = sorted((directory / "checkpoints").iterdir())
    assert len([file for file in load_manifest(step)["files"] if file.startswith("fragments")]) == 4
    assert not list((directory / "checkpoints").glob(".tmp-*"))
    assert load_state(step)["step"] == max(column(directory, "loss"))
    assert json.loads((directory / "run.json").read_text())["exit"] == 85
    said = re.findall(r"stopped: step (\d+) of \d+ is saved", (directory / "ranks" / "rank-0.log").read_text())
    assert int(said[-1]) == load_state(step)["step"]
    for rank in range(1, 4):
        assert not (directory / "ranks" / f"rank-{rank}.log").read_text(), "it is said once"
    return load_state(step)["step"]


@pytest.mark.slow
def test_signals_to_one_rank_and_again_while_saving_leave_a_run_that_equals_the_uninterrupted_one(place):
    run(*tiny("calm", *WIDE, *STEPS), ranks=4, cwd=place)
    directory = place / "runs" / "asked"

    launcher = launch(directory, *WIDE, *STEPS)
    os.kill(process_of(2, launcher), signal.SIGTERM)
    first = the_one_step(directory, launcher)

    launcher = launch(directory, *WIDE, *STEPS)
    held = process_of(3, launcher)
    launcher.send_signal(signal.SIGUSR1)
    wait_until(lambda: any((directory / "checkpoints").glob(".tmp-*")), launcher)
    os.kill(held, signal.SIGSTOP)  # the others wait for it in the middle of the save
    steps = list((directory / "checkpoints").glob("step-*"))
    launcher.send_signal(signal.SIGTERM)
    time.sleep(1)
    launcher.send_signal(signal.SIGTERM)
    launcher.send_signal(signal.SIGUSR1)
    assert launcher.poll() is None and len(steps) == 1, "all this came before the commit"
    os.kill(held, signal.SIGCONT)
    assert first < the_one_step(directory, launcher) < 24

    run(*tiny("asked", *WIDE, *STEPS), ranks=4, cwd=place)
    assert_equal_runs(place / "runs" / "calm", directory)


def test_a_run_can_be_stopped_as_process_1_while_it_imports(tmp_path):
    unshare = ["unshare", "--fork", "--pid", "--kill-child"]
    if subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("a namespace of processes needs privileges")
    words = [*unshare, sys.executable, "-m", "pretrain", *tiny("early")]
    run = subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children")
    wait_until(children.read_text, run)
    child = int(children.read_text())
    wait_until(lambda: knows(child, signal.SIGTERM, "Cgt"), run)
    os.kill(child, signal.SIGTERM)
    assert run.wait(60) == 85
    assert run.stderr and run.stderr.read() == "stopped with nothing to save; the same command starts again\n"


TRAINS = r"\d tokens/s"  # on the screen


def on_a_terminal(place: Path, name: str, ranks: int, *overrides: str) -> Terminal:
    launcher = ["launch", "local", f"nproc={ranks}", "--"] if ranks else []
    return Terminal([sys.executable, "-m", *launcher, "pretrain", *tiny(name, *ENDLESS, *overrides)], cwd=place)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [0, 2])
def test_one_ctrl_c_counts_once_for_each_rank_and_its_launcher(place, ranks):
    name = f"pressed-{ranks}"
    terminal = on_a_terminal(place, name, ranks)
    terminal.press(CTRL_C, after=TRAINS)
    assert terminal.end() == 85, terminal.shown
    [step] = (place / "runs" / name / "checkpoints").iterdir()
    assert step.name == f"step-{load_state(step)['step']:08d}"
    said = terminal.shown[terminal.shown.index("^C") :]
    assert said.count("stopping: ") == 1 and said.count("Ctrl-C again") == 1
    assert said.count(f"stopped: step {load_state(step)['step']} of 100000 is saved; the same command resumes") == 1
    assert "Traceback" not in terminal.shown


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [0, 2])
def test_a_second_ctrl_c_ends_a_run_at_once(place, ranks):
    wide = ["model.width=256", "train.batch_size=256"]  # a step takes a while
    terminal = on_a_terminal(place, f"twice-{ranks}", ranks, *wide)
    terminal.press(CTRL_C, after=TRAINS)
    terminal.press(CTRL_C, after="stopping: ")
    assert terminal.end() == 130, terminal.shown
    assert terminal.shown.count("ended at once; what was saved before is kept") == 1
    assert "Traceback" not in terminal.shown and not list((place / "runs" / f"twice-{ranks}").glob("checkpoints/*"))


def in_a_notebook(folder: str) -> None:
    """Train in a process that is no command of ours, and interrupt that as a kernel of notebooks does."""
    os.chdir(folder)
    directory, before = Path("runs/notebook"), [signal.getsignal(number) for number in HANDLED]

    def interrupt() -> None:
        until(lambda: logged(directory) > 3)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(Preempted, match=r"step \d+ of 100000 is saved; the same command resumes"):
        pretrain(compose(tiny("notebook", *ENDLESS)))
    assert [signal.getsignal(number) for number in HANDLED] == before
    assert json.loads((directory / "run.json").read_text())["exit"] == 85
    [step] = (directory / "checkpoints").iterdir()
    assert load_state(step)["step"] == max(column(directory, "loss"))


def test_a_notebook_that_is_interrupted_has_its_run_saved_and_its_handlers_back(place):
    notebook = Forked(call=(in_a_notebook, (str(place),)))
    assert notebook.wait() == 0, notebook.stderr


def knows(process: int, number: int, how: str) -> bool:
    """Return whether a process handles a signal (Cgt), or holds it back (Blk)."""
    sets = re.findall(rf"Sig(?:{how}):\s*(\w+)", Path(f"/proc/{process}/status").read_text())
    return any(int(one, 16) >> (number - 1) & 1 for one in sets)


def workers_of(process: subprocess.Popen) -> list[int]:
    """Return the processes that a pool of this one started and that run Python by now."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_preparing_ends_with_its_workers_and_without_a_word_of_theirs(place, tmp_path, number):
    """A whole group of processes is asked, as by Ctrl-C in a terminal: workers say nothing of their own."""
    (tmp_path / "text.txt").write_text((place / "text.txt").read_text() * 40)
    corpus = ["data.prepare.root=corpora", "data.prepare.workers=2", "tokenizer.vocab_size=4000"]
    words = [sys.executable, "-m", "pretrain.prepare", *tiny("stopped", *corpus)]
    said = tmp_path / "said"
    with said.open("w") as file:
        process = subprocess.Popen(words, cwd=tmp_path, stderr=file, stdout=file, start_new_session=True)
    wait_until(lambda: any(knows(worker, signal.SIGINT, "Cgt|Blk") for worker in workers_of(process)), process)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    assert process.wait(60) == 85
    *progress, last = said.read_text().splitlines()
    assert last == "stopped; units that are finished are kept, and the same command goes on from them"
    expected = ("tokenizer.vocab_size=300 is overridden", "text: 1 file", "training the tokenizer")
    assert all(line.startswith(expected) for line in progress), progress
    with pytest.raises(ProcessLookupError):
        until(lambda: os.killpg(process.pid, 0))  # no process of its session is left


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_the_others_and_is_named_by_the_launcher(place, victim):
    directory = place / "runs" / f"killed-{victim}"
    launcher = launch(directory, *ENDLESS)
    killed = time.monotonic()
    os.kill(process_of(victim, launcher), signal.SIGKILL)
    err = launcher.communicate(timeout=120)[1]
    print(f"all ranks had ended {time.monotonic() - killed:.2f} s after rank {victim} was killed")
    assert launcher.returncode == 7, err
    assert f"rank {victim} was killed by SIGKILL, the first to do so" in err.splitlines()[-1]
    for rank in {0, 1, 2, 3} - {victim}:
        said = (directory / "ranks" / f"rank-{rank}.log").read_text()
        assert f"rank {rank} on host" in said.splitlines()[-1] and "another rank ended" in said.splitlines()[-1]
        assert "Traceback" not in said
    if victim:
        assert json.loads((directory / "run.json").read_text())["exit"] == 7
        assert (
            "Connection" in (directory / "log.txt").read_text() and "Traceback" in (directory / "log.txt").read_text()
        )

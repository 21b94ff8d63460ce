"""Runs that `launch slurm` submits: whatever becomes of their jobs, they take the steps of an uninterrupted run."""

import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from jobs import Slurm
from ranks import column, run, tiny

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STEPS = 200  # seconds, on two ranks


def course(name: str, *more: str) -> list[str]:
    """Return the overrides of a run with ZeRO-2 whose loss depends on everything that resuming has to restore."""
    own = ["strategy=zero2", "train.micro_batch_size=4", "model.dropout=0.1", f"train.steps={STEPS}"]
    return tiny(name, *own, "eval.every=100", "checkpoint.every=40", *more)


@pytest.fixture(scope="session")
def whole(place) -> dict[int, object]:
    """The loss at each step of a run that nothing interrupts, on two ranks of this machine."""
    run(*course("whole"), ranks=2, cwd=place)
    return column(place / "runs" / "whole", "loss")


def submit(slurm: Slurm, place: Path, name: str, *settings: str, more: tuple[str, ...] = ()) -> list[str]:
    """Submit a run on two nodes with a rank each; return the numbers of its jobs."""
    own = ["cluster=cpu", "nodes=2", "time=10", *settings]
    done = slurm.run(sys.executable, "-m", "launch", "slurm", *own, "--", "pretrain", *course(name, *more), cwd=place)
    return re.findall(r"\d+", done.stdout.splitlines()[0].partition(":")[0])


def at_step(slurm: Slurm, directory: Path, step: int) -> None:
    """Wait until a run has taken a step."""
    metrics = directory / "metrics.jsonl"
    reached = f'"step": {step},'
    told = lambda: f"{directory} at {step}"
    slurm.wait_until(lambda: metrics.exists() and reached in metrics.read_text(), told, seconds=180)


def signalled(*words: str) -> Callable[[Slurm, str], object]:
    return lambda slurm, job: slurm.run("scancel", *words, job)


def bereft(slurm: Slurm, job: str) -> None:
    """Kill the daemon of the step on the node that is not the first."""
    slurm.steward(job, "0", "n2").kill()


def failed_node(name: str) -> Callable[[Slurm, str], None]:
    return lambda slurm, job: slurm.set_node(name, "down")


HARMS = {
    "asked_before_the_time_limit": signalled("--batch", "--signal=USR1"),
    "asked_to_go": signalled("--batch", "--signal=TERM"),
    "tasks_asked_to_go": signalled("--signal=TERM"),
    "daemon_killed": bereft,
    "node_down": failed_node("n2"),
    "first_node_down": failed_node("n1"),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_run_returns_by_itself_and_takes_the_steps_of_an_uninterrupted_one(slurm, place, whole, harm):
    [job] = submit(slurm, place, harm)
    at_step(slurm, place / "runs" / harm, 20)
    HARMS[harm](slurm, job)
    ended = slurm.end(job)
    output = (place / "runs" / harm / "slurm" / f"{job}.out").read_text()
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), output
    assert column(place / "runs" / harm, "loss") == whole


def test_a_run_goes_on_with_the_nodes_that_are_left_and_with_all_once_they_are_back(slurm, place):
    even = "model.dropout=0"  # masks depend on the ranks
    run(*course("even", even), ranks=2, cwd=place)
    slurm.set_node("n3", "drain")  # the spare one
    [job] = submit(slurm, place, "fewer", "min_nodes=1", more=(even,))
    directory = place / "runs" / "fewer"
    at_step(slurm, directory, 20)
    slurm.set_node("n2", "down")
    slurm.set_node("n2", "drain")  # or it is back before the job is
    output = directory / "slurm" / f"{job}.out"
    slurm.wait_until(lambda: "restart 1" in output.read_text(), output.read_text)
    at_step(slurm, directory, 100)
    slurm.run("scancel", "--batch", "--signal=USR1", job)
    slurm.set_node("n2", "resume")
    ended, output = slurm.end(job), output.read_text()
    assert (ended["JobState"], ended["Restarts"], ended["NodeList"]) == ("COMPLETED", "2", "n[1-2]"), output
    assert f"job {job}: 2 nodes were asked for, Slurm gave 1; runs on 1" in output
    assert column(directory, "loss") == pytest.approx(column(place / "runs" / "even", "loss"), rel=1e-5)


def test_a_run_saves_before_its_time_limit(slurm, place, whole):
    [job] = submit(slurm, place, "limit", "lead_s=5")
    at_step(slurm, place / "runs" / "limit", 20)
    rank = ranks(slurm, "limit")[-1]
    rank.suspend()  # so that steps are left when the time comes, however fast the machine
    _, minutes, seconds = map(int, slurm.job(job)["RunTime"].split(":"))
    limit = minutes + 1 if seconds < 20 else minutes + 2  # Slurm looks at limits every 30 s, and counts them in minutes
    slurm.run("scontrol", "update", f"JobId={job}", f"TimeLimit={limit}")
    slurm.wait_until(lambda: has_waiting(rank, signal.SIGUSR1), lambda: f"asked: {slurm.job(job)}", seconds=150)
    rank.resume()
    slurm.wait_for(job, "PENDING")
    slurm.run("scontrol", "update", f"JobId={job}", "TimeLimit=10")
    assert (slurm.end(job)["JobState"], slurm.ends(job)) == ("COMPLETED", ["PENDING", "COMPLETED"])
    assert column(place / "runs" / "limit", "loss") == whole


def test_a_job_that_gets_nowhere_stops_itself(slurm, place):
    [job] = submit(slurm, place, "nowhere", "max_idle_starts=2")

    def harmed() -> bool:
        for rank in ranks(slurm, "nowhere"):
            rank.kill()
        return slurm.over(job)

    slurm.wait_until(harmed, lambda: f"at its end: {slurm.job(job)}", seconds=120)
    ended = slurm.job(job)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "7:0", "1")
    assert "began 2 times without a new checkpoint" in (place / "runs/nowhere/slurm" / f"{job}.out").read_text()


def test_a_cancelled_job_saves_and_does_not_return_but_the_same_command_goes_on(slurm, place, whole):
    directory = place / "runs" / "cancelled"
    [job] = submit(slurm, place, "cancelled")
    at_step(slurm, directory, 20)
    slurm.run("scancel", job)
    assert slurm.end(job)["JobState"] == "CANCELLED"
    assert [path for path in (directory / "checkpoints").iterdir() if path.name.startswith("step-")]
    [job] = submit(slurm, place, "cancelled")
    assert slurm.end(job)["JobState"] == "COMPLETED"
    assert column(directory, "loss") == whole


def test_a_chain_begins_what_is_left_and_no_more(slurm, place, whole):
    jobs = submit(slurm, place, "chain", "cluster.requeue=false", "chain=4")
    at_step(slurm, place / "runs" / "chain", 20)
    slurm.run("scancel", "--batch", "--signal=USR1", jobs[0])
    ended = [slurm.end(job)["JobState"] for job in jobs]
    assert ended == ["FAILED", "COMPLETED", "CANCELLED", "CANCELLED"]
    assert column(place / "runs" / "chain", "loss") == whole


def test_one_run_of_a_sweep_returns_alone_and_equals_the_same_run_by_itself(slurm, place):
    run(*course("alone", "seed=2"), cwd=place)
    [array] = submit(slurm, place, "sweep", "nodes=1", more=("seed=1,2",))
    at_step(slurm, place / "runs" / "sweep-seed-2", 20)
    slurm.run("scancel", "--batch", "--signal=USR1", f"{array}_1")
    ended = [slurm.end(f"{array}_{number}") for number in (0, 1)]
    assert [(job["JobState"], job["Restarts"]) for job in ended] == [("COMPLETED", "0"), ("COMPLETED", "1")]
    assert column(place / "runs" / "sweep-seed-2", "loss") == column(place / "runs" / "alone", "loss")


def ranks(slurm: Slurm, name: str) -> list[psutil.Process]:
    """Return the ranks of a run on all nodes, and not what starts them there."""
    found = slurm.processes("-m", "pretrain", f"run.name={name}")
    return [process for process in found if "launch.slurm.node" not in process.cmdline()]


def has_waiting(process: psutil.Process, number: signal.Signals) -> bool:
    """Return whether a process that does not run was sent a signal."""
    [waiting] = re.findall(r"ShdPnd:\s*(\w+)", Path(f"/proc/{process.pid}/status").read_text())
    return bool(int(waiting, 16) >> number - 1 & 1)

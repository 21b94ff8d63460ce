"""Jobs on a virtual cluster: submitted, watched and harmed.

Holds what tests ask of Slurm and do to it; starting a cluster is for `cluster`.
"""

import os
import re
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from cluster import environment

FIELD = re.compile(r"(\w+)=(\S*)")


@dataclass(frozen=True, kw_only=True)
class Slurm:
    """A cluster that runs."""

    folder: Path
    variables: Mapping[str, str] = field(default_factory=dict)  # that commands have beside ours, and jobs from them

    def run(self, *command: str, cwd: Path | None = None, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run a command that finds the cluster to its end, and check its exit code."""
        variables = environment(self.folder) | dict(self.variables)
        done = subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=120)
        assert done.returncode == code, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def submit(self, script: str, *options: str, cwd: Path) -> str:
        """Submit the text of a shell script, without its first line; return the job's number.

        What the job writes goes to `cwd`/NUMBER.out, however often it starts.
        """
        path = cwd / "job.sh"
        path.write_text(f"#!/bin/bash\n{script}\n")
        output = ["--output=%j.out", "--open-mode=append"]
        return self.run("sbatch", "--parsable", *output, *options, path.name, cwd=cwd).stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """Return what Slurm says about a job by name: JobState, Reason, ExitCode, Restarts, BatchHost and others."""
        return dict(FIELD.findall(self.run("scontrol", "--oneliner", "show", "job", number).stdout))

    def wait_for(self, number: str, *states: str, seconds: float = 60) -> dict[str, str]:
        """Return what Slurm says about a job once it is in one of these states, such as RUNNING or COMPLETED."""
        self.wait_until(
            lambda: self.job(number)["JobState"] in states, lambda: f"{states}: {self.job(number)}", seconds
        )
        return self.job(number)

    def wait_until(self, reached: Callable[[], object], what: Callable[[], str], seconds: float = 60) -> None:
        """Wait until something is true; fail, saying what it was, where that takes longer."""
        deadline = time.monotonic() + seconds
        while not reached():
            assert time.monotonic() < deadline, f"after {seconds} s still not {what()}"
            time.sleep(0.2)

    def end(self, number: str, seconds: float = 240) -> dict[str, str]:
        """Return what Slurm says about a job at its end for good."""
        self.wait_until(lambda: self.over(number), lambda: f"at its end: {self.job(number)}", seconds)
        return self.job(number)

    def over(self, number: str) -> bool:
        """Return whether a job has ended for good.

        One that was requeued waits for 10 s. To cut that short fails jobs at times: a node takes a start that comes too
        soon for the one that it has just ended.
        """
        return self.job(number)["JobState"] not in ("PENDING", "RUNNING", "COMPLETING")

    def ends(self, number: str) -> list[str]:
        """Return the states of a job at its ends, in order: PENDING where it asked to be requeued, NODE_FAIL, ..."""
        told = (dict(FIELD.findall(line)) for line in (self.folder / "finished.txt").read_text().splitlines())
        return [end["JobState"] for end in told if end["JobId"] == number]

    def set_node(self, name: str, state: str) -> None:
        """Make a node `down`, which ends its jobs, or `resume` it."""
        self.run("scontrol", "update", f"NodeName={name}", f"State={state}", "Reason=test")

    def processes(self, *words: str) -> list[psutil.Process]:
        """Return the processes of the cluster and its jobs that have these words, one behind the other, in a row."""
        keeper = psutil.Process(int((self.folder / "keeper.pid").read_text()))
        return [process for process in keeper.children(recursive=True) if _has(process, words)]

    def steward(self, number: str, step: str, node: str) -> psutil.Process:
        """Return the slurmstepd that runs a step, `batch` or a number, of a job on a node."""
        for process in self.processes(f"slurmstepd: [{number}.{step}]"):
            if any(child.environ()["SLURMD_NODENAME"] == node for child in process.children()):
                return process
        raise AssertionError(f"no slurmstepd of {number}.{step} on {node}")

    def clear(self) -> None:
        """Cancel all jobs and wake all nodes, for whoever comes next."""
        self.run("scancel", f"--user={os.getuid()}")
        self.wait_until(
            lambda: not self.run("squeue", "--noheader").stdout, lambda: "empty: " + self.run("squeue").stdout
        )
        for name in self.run("sinfo", "--noheader", "--Node", "--states=down,drain", "--format=%N").stdout.split():
            self.set_node(name, "resume")


def _has(process: psutil.Process, words: tuple[str, ...]) -> bool:
    try:
        line = process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False
    return any(tuple(line[at : at + len(words)]) == words for at in range(len(line)))

"""What a node's ranks come to for srun, and what the job script makes of it again."""

import itertools
import os
import subprocess
import sys

import pytest

from launch.slurm.cluster import ClusterConfig
from launch.slurm.node import ordered
from launch.slurm.script import Shape, Task, run_script

COMMANDS = {
    "srun": "exit {code}",
    "scontrol": 'case "$1" in requeue) echo "requeued $2";; *) echo n1;; esac',
    "squeue": "echo RUNNING",
    "getent": "exit 0",
}


def end_of_job(folder, code, requeue=True):
    """Return exit code and output of a job whose srun ends with a code."""
    for name, body in COMMANDS.items():
        (folder / name).write_text(f"#!/bin/sh\n{body.format(code=code)}\n")
        (folder / name).chmod(0o755)
    shape = Shape(name="x", requeue=requeue, max_restarts=9, max_idle_starts=3)
    task = Task(run=folder / "run", program=["pretrain"])
    script = run_script(ClusterConfig(), shape, [task], folder)
    variables = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1", "PATH": f"{folder}:{os.environ['PATH']}"}
    done = subprocess.run(["bash"], input=script, env=variables, capture_output=True, text=True)
    return done.returncode, done.stdout


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 5, 6, 7, 8, 85])
def test_a_job_ends_with_the_code_of_its_ranks(tmp_path, code):
    ended, output = end_of_job(tmp_path, ordered(code))
    assert ended == code
    assert ("requeued 7" in output) == (code in (6, 7, 85))


@pytest.mark.parametrize("code", [137, 143])
def test_a_step_that_is_killed_from_outside_is_tried_again(tmp_path, code):
    assert end_of_job(tmp_path, code)[0] == code
    assert "requeued" in end_of_job(tmp_path, code)[1]


def test_three_starts_without_a_checkpoint_are_the_last(tmp_path):
    outputs = [end_of_job(tmp_path, ordered(7)) for _ in range(4)]
    assert ["requeued 7" in output for _, output in outputs] == [True, True, False, False]
    assert [code for code, _ in outputs] == [7, 7, 7, 7]
    (tmp_path / "run" / "checkpoints" / "step-00000040").mkdir(parents=True)
    assert "requeued 7" in end_of_job(tmp_path, ordered(7))[1], "a new checkpoint is progress"


def test_where_jobs_may_not_requeue_they_say_how_to_go_on(tmp_path):
    code, output = end_of_job(tmp_path, 85, requeue=False)
    assert code == 85 and "requeued" not in output and "run it again with the same run.name to resume" in output


def test_a_cause_comes_above_what_follows_from_it():
    causes, consequences = (1, 2, 3, 4, 5, 6, 8), (0, 85, 7)
    assert all(ordered(cause) > ordered(other) for cause, other in itertools.product(causes, consequences))
    assert ordered(7) > ordered(85) > ordered(0)
    assert all(0 <= ordered(code) < 128 for code in range(256))


def test_the_node_says_how_many_ranks_it_has(tmp_path):
    """As in a job: the second of two nodes, whose ranks end with a failure of their own."""
    slurm = {"SLURM_NODEID": "1", "SLURM_STEP_NUM_NODES": "2", "MASTER_ADDR": "n1", "MASTER_PORT": "10007"}
    program = "import os, sys; print(os.environ['RANK'], os.environ['WORLD_SIZE'], flush=True); sys.exit(5)"
    line = [sys.executable, "-m", "launch.slurm.node", "--nproc", "3", "--logs", str(tmp_path), "--"]
    done = subprocess.run(
        [*line, sys.executable, "-c", program], env=os.environ | slurm, capture_output=True, text=True
    )
    assert done.returncode == 105, done.stderr
    assert sorted(path.read_text() for path in tmp_path.glob("rank-*.log")) == ["3 6\n", "4 6\n", "5 6\n"]

"""The virtual cluster does what tests of the launcher rely on, as a real one does."""

import psutil
import pytest
from cluster import start, stop

pytestmark = pytest.mark.slow

SAVES_AND_RETURNS = """
say() { echo "start ${SLURM_RESTART_COUNT:-0}: $*"; }
[ -n "$SLURM_RESTART_COUNT" ] && { say done; exit 0; }
srun --wait=0 bash -c 'trap "echo node $SLURM_NODEID saves; exit 85" USR1; echo begins; sleep 60 & wait' & step=$!
trap 'kill -USR1 $step' USR1
while kill -0 $step; do wait $step; done 2> /dev/null
wait $step; say $?
scontrol requeue $SLURM_JOB_ID
"""


def test_a_signal_reaches_the_tasks_of_all_nodes_and_the_job_returns(slurm, tmp_path):
    job = slurm.submit(SAVES_AND_RETURNS, "--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=1", cwd=tmp_path)
    output = tmp_path / f"{job}.out"
    slurm.wait_until(lambda: output.exists() and output.read_text().count("begins") == 2, output.read_text)
    slurm.run("scancel", "--batch", "--signal=USR1", job)
    assert slurm.end(job)["JobState"] == "COMPLETED"
    assert slurm.ends(job) == ["PENDING", "COMPLETED"]
    lines = set(output.read_text().splitlines())
    assert {"node 0 saves", "node 1 saves", "start 0: 85", "start 1: done"} <= lines


def test_a_job_survives_its_node(slurm, tmp_path):
    script = '[ -n "$SLURM_RESTART_COUNT" ] || sleep 60; echo $SLURMD_NODENAME'
    job = slurm.submit(script, "--nodes=2", "--requeue", cwd=tmp_path)
    host = slurm.wait_for(job, "RUNNING")["BatchHost"]
    slurm.set_node(host, "down")
    assert slurm.end(job)["JobState"] == "COMPLETED"
    assert slurm.ends(job) == ["NODE_FAIL", "COMPLETED"]
    assert (tmp_path / f"{job}.out").read_text().split()[-1] not in ("", host)
    assert slurm.run("sinfo", "--noheader", "--states=down", "--format=%N").stdout.split() == [host]


def test_no_process_stays(tmp_path):
    folder = tmp_path / "cluster"
    start(folder, 1)
    keeper = psutil.Process(int((folder / "keeper.pid").read_text()))
    family = [keeper, *keeper.children(recursive=True)]
    assert {"munged", "slurmctld", "slurmd"} <= {process.name() for process in family}
    stop(folder)
    assert not [process for process in family if process.is_running()]

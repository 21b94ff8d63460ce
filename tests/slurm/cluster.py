"""A Slurm cluster of virtual nodes on this machine: `python tests/slurm/cluster.py start FOLDER --nodes 2`, or `stop`.

Holds its configuration and its processes; what is submitted to it, and what is asked of it, is for others to say.

Everything lies in the folder. One process, the keeper, is the ancestor of all that runs: of munged, slurmctld, a slurmd
for each node, and their jobs; it ends when nothing of that is left. Jobs run as whoever starts the cluster. Only
installing Debian's packages needs root.
"""

import argparse
import ctypes
import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

PACKAGES = {"munged": "munge", "slurmctld": "slurm-wlm"}  # by the program that shows that they are installed
START_S = 30.0  # until every node is idle; a second or two where the machine has nothing else to do
STOP_S = 30.0
PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>: orphans below this process become its children, not those of process 1

# Times are short so that tests are: `cred_expire` is also how long a requeued job waits, two minutes by default.
# CPUs, memory and GPUs are claims that Slurm believes: nothing is bound to them, and empty files stand for devices.
CLUSTER = """\
ClusterName=virtual
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdSpoolDir={folder}/spool-%n
StateSaveLocation={folder}/state
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
ReturnToService=1
KillWait=10
MinJobAge=3600
SlurmdTimeout=30
GresTypes=gpu
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/finished.txt
PartitionName=main Nodes=ALL Default=YES DefaultTime=10 MaxTime=60 State=UP
"""
NODE = "NodeName=n{number} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=4 RealMemory=8000 Gres=gpu:2\n"


def start(folder: Path, nodes: int = 2) -> Path:
    """Start a cluster, with all nodes idle on return; return its slurm.conf, which SLURM_CONF has to name."""
    install()
    folder = folder.resolve()
    (folder / "state").mkdir(parents=True)
    (folder / "slurm.conf").write_text(configuration(folder, nodes))
    for device in ("gpu0", "gpu1"):
        (folder / device).touch()
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-1]\n")
    with (folder / "keeper.log").open("w") as log:
        command = [sys.executable, __file__, "keep", str(folder), "--nodes", str(nodes)]
        keeper = subprocess.Popen(
            command, env=environment(folder), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    (folder / "keeper.pid").write_text(str(keeper.pid))
    deadline = time.monotonic() + START_S
    while idle_nodes(folder) < nodes:
        if keeper.poll() is not None or time.monotonic() > deadline:
            stop(folder)
            raise SystemExit(f"the cluster did not start: {folder}/*.log say why")
        time.sleep(0.2)
    return folder / "slurm.conf"


def stop(folder: Path) -> None:
    """End all processes of a cluster, jobs included."""
    try:
        keeper = psutil.Process(int((folder / "keeper.pid").read_text()))
        if "keep" in keeper.cmdline():  # and not a process that got its number since
            keeper.terminate()
            keeper.wait(STOP_S)
    except psutil.NoSuchProcess:
        pass


def install() -> None:
    """Install Debian's packages where Slurm is missing; without root, say which."""
    missing = [package for program, package in PACKAGES.items() if not shutil.which(program, path=search_path())]
    if not missing:
        return
    if os.geteuid() != 0:
        raise SystemExit(f"Slurm is not installed. As root: apt-get install {' '.join(missing)}")
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "-qq", "update"], env=quiet, check=True)
    subprocess.run(["apt-get", "-qq", "install", "--no-install-recommends", *missing], env=quiet, check=True)


def configuration(folder: Path, nodes: int) -> str:
    """Return slurm.conf, with ports that are free now."""
    host = socket.gethostname().split(".")[0]
    controller, *ports = free_ports(nodes + 1)
    lines = [NODE.format(number=number, host=host, port=port) for number, port in enumerate(ports, 1)]
    return CLUSTER.format(folder=folder, host=host, port=controller, user=getpass.getuser()) + "".join(lines)


def free_ports(count: int) -> list[int]:
    """Return different ports on which nobody listens now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


def search_path() -> str:
    """Return where programs are looked for: daemons lie outside the path of most users."""
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def environment(folder: Path) -> dict[str, str]:
    """Return this process's environment without a job around it, and with the cluster's configuration."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    return {**outside, "PATH": search_path(), "SLURM_CONF": str(folder / "slurm.conf")}


def idle_nodes(folder: Path) -> int:
    """Return how many nodes wait for jobs."""
    command = ["sinfo", "--noheader", "--Node", "--states=idle", "--format=%N"]
    answer = subprocess.run(command, env=environment(folder), capture_output=True, text=True)
    return len(answer.stdout.split()) if answer.returncode == 0 else 0


def keep(folder: Path, nodes: int) -> None:
    """Run the daemons until SIGTERM; end them and whatever came of them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGCHLD})
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))
    files = {"socket": "munge.socket", "key-file": key.name, "pid-file": "munged.pid", "log-file": "munged.log"}
    places = [f"--{option}={folder / name}" for option, name in {**files, "seed-file": "munged.seed"}.items()]
    daemon(["munged", "--foreground", "--force", *places])
    deadline = time.monotonic() + START_S
    while not (folder / "munge.socket").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    daemon(["slurmctld", "-D"])
    for number in range(1, nodes + 1):
        daemon(["slurmd", "-D", "-N", f"n{number}"])
    while signal.sigwait({signal.SIGTERM, signal.SIGCHLD}) == signal.SIGCHLD:
        reap()
    while left := psutil.Process().children(recursive=True):
        for process in left:
            process.kill()
        time.sleep(0.05)
        reap()


def daemon(command: list[str]) -> None:
    """Start a program whose signals are not blocked as ours are."""
    free = {"preexec_fn": lambda: signal.pthread_sigmask(signal.SIG_SETMASK, set())}
    subprocess.Popen(command, start_new_session=True, **free)


def reap() -> None:
    """Take note of the children that have ended, so that none stays as a zombie."""
    try:
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
    except ChildProcessError:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description="A Slurm cluster of virtual nodes on this machine.")
    parser.add_argument("command", choices=["start", "stop", "keep"], help="`keep` is for `start` to use")
    parser.add_argument("folder", type=Path, help="of the cluster's configuration, logs and state; not there before")
    parser.add_argument("--nodes", type=int, default=2)
    given = parser.parse_args()
    if given.command == "start":
        print(f"export SLURM_CONF={start(given.folder, given.nodes)}")
    elif given.command == "stop":
        stop(given.folder)
    else:
        keep(given.folder, given.nodes)


if __name__ == "__main__":
    main()

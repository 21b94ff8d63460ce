"""Ranks of one node: their variables, their logs, what their ends come to, and signals."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ranks import wait_until

from launch.ranks import Node, run_ranks
from pretrain.errors import ConfigError

SAY = "import json, os, sys; print(json.dumps(dict(os.environ)))"


def run(tmp_path, code, count=3, node=None):
    node = node or Node(port=29500)
    return run_ranks([sys.executable, "-c", code], count=count, node=node, logs=tmp_path / "ranks")


def log(tmp_path, rank):
    return (tmp_path / "ranks" / f"rank-{rank}.log").read_text()


def test_ranks_know_who_they_are(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    node = Node(number=2, of=4, address="10.0.0.1", port=1234)
    assert run(tmp_path, SAY, count=3, node=node) == 0
    for local in range(3):
        told = json.loads(log(tmp_path, 6 + local))
        names = ["RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"]
        assert [told[name] for name in names] == [str(6 + local), str(local), "2", "12", "3", "10.0.0.1", "1234"]
        assert told["OMP_NUM_THREADS"] == str(max(1, len(os.sched_getaffinity(0)) // 3))


def test_threads_that_are_set_stay(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert run(tmp_path, SAY, count=2) == 0
    assert json.loads(log(tmp_path, 1))["OMP_NUM_THREADS"] == "7"


def test_rank_0_is_seen_and_the_others_are_logged(tmp_path, capfd):
    code = "import os, sys; print('out', os.environ['RANK']); print('err', os.environ['RANK'], file=sys.stderr)"
    assert run(tmp_path, code) == 0
    out, err = capfd.readouterr()
    assert (out, err) == ("out 0\n", "err 0\n")
    assert log(tmp_path, 0) == "err 0\n"
    assert sorted(log(tmp_path, 2).split("\n")) == ["", "err 2", "out 2"]


FAILS = """
import os, sys, time
if os.environ["RANK"] == "{rank}":
    time.sleep(0.2)
    {fails}
time.sleep(600)
"""


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize(
    ("fails", "code", "told"),
    [
        ("raise ValueError('the first')", 1, "ended with exit code 1"),
        ("sys.exit('a setting: refused') if False else os._exit(2)", 2, "ended with exit code 2"),
        ("os.kill(os.getpid(), 9)", 7, "was killed by SIGKILL"),
    ],
)
def test_the_first_to_fail_decides_and_is_told_last(tmp_path, capfd, monkeypatch, rank, fails, code, told):
    monkeypatch.setattr("launch.ranks.GRACE_S", 0.3)
    began = time.monotonic()
    assert run(tmp_path, FAILS.format(rank=rank, fails=fails)) == code
    assert time.monotonic() - began < 60, "the others would sleep for ten minutes"
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith(f"rank {rank} {told}, the first to do so") and f"rank-{rank}.log" in last
    if code == 1:
        assert "ValueError: the first" in log(tmp_path, rank)


def test_a_rank_that_is_alone_has_said_all(tmp_path, capfd):
    assert run(tmp_path, "raise SystemExit('refused')", count=1) == 1
    assert capfd.readouterr().err == "refused\n"
    assert run(tmp_path, "import os; os.kill(os.getpid(), 9)", count=1) == 7
    assert "rank 0 was killed by SIGKILL" in capfd.readouterr().err


@pytest.mark.parametrize("rank", [0, 1])
def test_the_traceback_is_shown_once_and_last(tmp_path, capfd, monkeypatch, rank):
    monkeypatch.setattr("launch.ranks.GRACE_S", 0.3)
    run(tmp_path, FAILS.format(rank=rank, fails="raise ValueError('the first')"))
    lines = capfd.readouterr().err.splitlines()
    assert lines.index("ValueError: the first") == len(lines) - 2


def test_what_earlier_starts_wrote_is_not_shown(tmp_path, capfd):
    run(tmp_path, "print('of the first start'); raise SystemExit(3)", count=1, node=Node(number=1, of=2, port=1))
    assert "of the first start" in capfd.readouterr().err
    run(tmp_path, "raise SystemExit(3)", count=1, node=Node(number=1, of=2, port=1))
    assert "of the first start" not in capfd.readouterr().err
    assert "of the first start" in log(tmp_path, 1)


MISSES = """
import os, sys, time
if os.environ["RANK"] == "1":
    time.sleep(0.5)
    {fails}
sys.exit(7)
"""


@pytest.mark.parametrize(("fails", "code"), [("raise ValueError('a bug')", 1), ("os.kill(os.getpid(), 9)", 7)])
def test_ranks_that_miss_another_are_not_the_first_to_fail(tmp_path, capfd, fails, code):
    assert run(tmp_path, MISSES.format(fails=fails)) == code
    assert "rank 1 " in capfd.readouterr().err.splitlines()[-1]


PROGRAM = """
import sys
from pathlib import Path
from launch.ranks import Node, run_ranks
from pretrain.errors import ConfigError
sys.exit(run_ranks([sys.executable, "-c", sys.argv[2]], count=3, node=Node(port=1), logs=Path(sys.argv[1])))
"""
# A handler may run within `print`, once the text is out: another `print` is an error there, and `os.write` is none.
SAVES = """
import os, signal, sys, time
def stop(number, frame):
    os.write(1, f"asked by {number}\\n".encode())
    time.sleep(0.2 * int(os.environ["RANK"]))
    sys.exit(85)
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, stop)
os.write(1, b"ready\\n")
while True:
    time.sleep(0.05)
"""


def launched(tmp_path, code, *ignored):
    """Return a launcher of three ranks, once all of them are ready, that some signals were ignored for."""
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "ranks"), code]
    heeded = {signal.SIGHUP: signal.SIG_DFL}  # also where the tests were started by nohup
    kept = heeded | dict.fromkeys(ignored, signal.SIG_IGN)
    before = {number: signal.signal(number, handler) for number, handler in kept.items()}
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert process.stdout and process.stdout.readline() == "ready\n"
    logs = [tmp_path / "ranks" / f"rank-{rank}.log" for rank in (1, 2)]  # which come after the first rank has begun
    wait_until(lambda: all(path.exists() and path.read_text().startswith("ready") for path in logs), process)
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP])
def test_all_ranks_are_asked_to_stop(tmp_path, number):
    process = launched(tmp_path, SAVES)
    process.send_signal(number)
    assert process.wait(60) == 85
    passed = signal.SIGUSR1 if number == signal.SIGUSR1 else signal.SIGTERM
    assert all(f"asked by {int(passed)}" in log(tmp_path, rank) for rank in (1, 2))
    assert ("Ctrl-C again ends them" in process.stderr.read()) == (number == signal.SIGINT)


ALONE = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: os._exit({others}))
print("ready", flush=True)
if os.environ["RANK"] == "1":
    logs = [f"{{sys.argv[1]}}/rank-{{rank}}.log" for rank in (1, 2)]
    while not all(os.path.exists(path) and "ready" in open(path).read() for path in logs):
        time.sleep(0.01)
    sys.exit(85)
time.sleep(600)
"""


@pytest.mark.parametrize("others", [0, 7, 85])
def test_a_rank_that_stops_alone_stops_the_others_and_is_no_loss(tmp_path, others):
    logs = tmp_path / "ranks"
    command = [sys.executable, "-c", ALONE.format(others=others), str(logs)]
    assert run_ranks(command, count=3, node=Node(port=1), logs=logs) == 85


LEAVES = """
import os, subprocess
child = subprocess.Popen(["true"])
os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and nobody has taken note
os._exit(0)
"""
COUNTS = """
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    sys.exit(0)
sys.exit("a zombie is left")
"""


def test_the_first_process_of_a_container_lets_go_of_what_ranks_left_behind(tmp_path):
    unshare = ["unshare", "--fork", "--pid", "--kill-child"]
    if subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("a namespace of processes needs privileges")
    program = PROGRAM.replace("sys.exit(run_ranks(", "import os\nassert 0 == (run_ranks(") + COUNTS
    ended = subprocess.run([*unshare, sys.executable, "-c", program, str(tmp_path / "ranks"), LEAVES])
    assert ended.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_nohup_and_the_background_of_a_shell_keep_their_promise(tmp_path, number):
    process = launched(tmp_path, SAVES, number)
    process.send_signal(number)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(60) == 85
    assert log(tmp_path, 2).split("\n", 1)[1] == f"asked by {int(signal.SIGUSR1)}\n"
    assert process.stderr.read() == ""


def test_a_first_interrupt_kills_nothing_whoever_asked_before(tmp_path):
    process = launched(tmp_path, SAVES)
    process.send_signal(signal.SIGTERM)
    wait_until(lambda: "asked by" in log(tmp_path, 2), process)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 85


def test_a_second_interrupt_kills(tmp_path):
    process = launched(tmp_path, SAVES.replace("sys.exit(85)", "time.sleep(600)"))
    process.send_signal(signal.SIGINT)
    wait_until(lambda: "asked by" in log(tmp_path, 2), process)
    process.send_signal(signal.SIGINT)
    process.wait(60)
    assert process.returncode == -signal.SIGINT or process.returncode == 130
    assert not living(tmp_path)


def living(tmp_path):
    """Return the processes whose log is in the folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            links = [str(link.readlink()) for link in (process / "fd").iterdir()]
        except OSError:
            continue
        found += [process.name] if any(str(tmp_path) in link for link in links) else []
    return found


def test_a_place_that_cannot_have_logs_is_refused(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(ConfigError, match=r"taken/ranks: no directory can be made there .* choose another run.root"):
        run(tmp_path / "taken", "raise SystemExit(0)", count=1)

"""Ranks that hang, in ways that a thread can and cannot report: how the others end, and whom they name."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from forks import Forked
from ranks import column, end, environments, launched, process_of, run, tiny, wait_until
from test_pretrain import logged

from pretrain.distributed.recorder import TRACE
from pretrain.errors import TimedOut

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # s; processes that wait, on few cores

STEPS = """
import ctypes, os, signal, time
from datetime import timedelta
from pathlib import Path
from pretrain.compose import hydra_command
from pretrain.distributed.world import joined
def collect(cfg):
    import torch
    import torch.distributed as dist
    files = Path({files!r})
    ended = lambda code: (files / f"ended-{{os.environ['RANK']}}").write_text(str(code))
    with joined(timedelta(seconds=3), files, ended) as world:
        patient = dist.new_group(timeout=timedelta(minutes=5))
        for number in range(4):
            world.sum_ints(1)
            if number == 3 and world.rank == {victim}:
                {fault}
            elif number == 3:
                {others}
        world.sum_ints(1)
hydra_command(collect)
"""
STOPPED, ASLEEP = "os.kill(os.getpid(), signal.SIGSTOP)", "time.sleep(300)"
# A collective under way that no thread waits for, as those on a GPU, and a host that is stuck in a library.
STUCK = "dist.all_reduce(torch.ones(3), async_op=True, group=patient), ctypes.CDLL(None).sleep(300)"


def ends(tmp_path, victim: int, fault: str, others: str = "pass") -> list[str]:
    """Return what the ranks said of which none had the fault; all of them ended with the exit code of a hang."""
    script = STEPS.format(files=str(tmp_path), victim=victim, fault=fault, others=others)
    ranks = [Forked("-c", script, env=os.environ | own) for own in environments(3)]
    codes = [rank.wait() for number, rank in enumerate(ranks) if number != victim]
    ranks[victim].kill()
    ranks[victim].wait()
    assert codes == [TimedOut.exit_code] * 2, [rank.stderr for rank in ranks]
    return [rank.stderr for number, rank in enumerate(ranks) if number != victim]


@pytest.mark.parametrize(
    ("victim", "fault", "named"),
    [
        (1, STOPPED, "rank 1 of 3 did not answer: stopped, or on a node that is gone"),
        (1, ASLEEP, "rank 1 of 3 waited in no collective (rank 1 was at __main__, line 17, in collect)"),
        (0, STOPPED, "rank 0, which holds the store, does not answer"),
    ],
)
def test_the_ranks_that_wait_end_as_a_hang_and_name_the_silent_one(tmp_path, victim, fault, named):
    for said in ends(tmp_path, victim, fault):
        assert said.splitlines()[-1].endswith(named)
        assert len(said.splitlines()) == 1


def test_a_rank_whose_host_is_stuck_ends_as_well_and_its_record_is_kept(tmp_path):
    for said in ends(tmp_path, 1, ASLEEP, STUCK):
        assert "a collective did not end within run.timeout_minutes=0.05; rank 1 of 3 waited in no collective" in said
    assert {file.name: file.read_text() for file in tmp_path.glob("ended-*")} == {"ended-0": "6", "ended-2": "6"}
    for rank in range(3):
        assert "collect" in (tmp_path / f"stacks-rank-{rank}.txt").read_text()
        assert (tmp_path / f"{TRACE}{rank}").stat().st_size > 0


GONE = """
from pretrain.commands import start_command
start_command()
from torch.distributed import TCPStore
server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
client = TCPStore("127.0.0.1", server.port, wait_for_workers=False)
del server
try:
    client.check(["key"])
except RuntimeError as error:
    print(type(error).__name__)
"""


def test_a_store_that_is_gone_leaves_no_page_of_stack_frames():
    done = subprocess.run([sys.executable, "-c", GONE], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("DistNetworkError\n", "")


def test_a_run_with_a_hanging_rank_ends_with_the_code_of_a_hang(place):
    directory = place / "runs" / "hung"
    settings = ["train.steps=100000", "checkpoint.every=3", "eval.every=0", "train.micro_batch_size=4"]
    overrides = tiny("hung", *settings, "run.timeout_minutes=0.1")
    launcher = launched(*overrides, ranks=2, logs=directory / "ranks", cwd=place)
    wait_until(lambda: logged(directory) >= 8, launcher)
    os.kill(process_of(1, launcher), signal.SIGSTOP)
    err = launcher.communicate(timeout=200)[1]
    assert launcher.returncode == TimedOut.exit_code, err
    assert "rank 1 of 2 did not answer" in err
    assert json.loads((directory / "run.json").read_text())["exit"] == TimedOut.exit_code
    assert (directory / "hang" / "stacks-rank-0.txt").is_file()


@pytest.mark.parametrize("victim", [2, 0])
def test_a_stopped_rank_is_named_by_the_others_soon_and_no_rank_is_left(place, victim):
    directory = place / "runs" / f"silent-{victim}"
    settings = ["train.steps=100000", "checkpoint.every=100000", "eval.every=0", "train.micro_batch_size=2"]
    overrides = tiny(directory.name, *settings, "run.heartbeat_timeout_s=6")
    launcher = launched(*overrides, ranks=4, logs=directory / "ranks", cwd=place)
    wait_until(lambda: logged(directory) >= 8, launcher)
    numbers = [process_of(rank, launcher) for rank in range(4)]
    os.kill(numbers[victim], signal.SIGSTOP)
    err = launcher.communicate(timeout=200)[1]
    assert launcher.returncode == TimedOut.exit_code, err
    assert "no heartbeat within run.heartbeat_timeout_s=6" in err
    assert (
        "rank 0 of 4 does not answer" in err
        if victim == 0
        else re.search(r"of rank 2 of 4, on host .* at step \d", err)
    )
    live = {rank for rank in range(4) if rank != victim}
    assert {file.name for file in (directory / "hang").glob("stacks-*")} == {f"stacks-rank-{rank}.txt" for rank in live}
    assert "train/loop.py" in (directory / "hang" / f"stacks-rank-{max(live)}.txt").read_text()
    assert not [number for number in numbers if Path(f"/proc/{number}").exists()]


@pytest.mark.parametrize("victim", [2, 0])
def test_torchrun_does_not_wait_for_a_stopped_rank(place, victim):
    directory = place / "runs" / f"frozen-{victim}"
    settings = ["train.steps=100000", "checkpoint.every=100000", "eval.every=0", "train.micro_batch_size=2"]
    overrides = tiny(directory.name, *settings, "run.heartbeat_timeout_s=6")
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4", "-m", "pretrain", *overrides]
    agent = subprocess.Popen([sys.executable, *words], cwd=place, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: logged(directory) >= 8, agent)
    numbers = {int(child.environ()["RANK"]): child.pid for child in psutil.Process(agent.pid).children()}
    os.kill(numbers[victim], signal.SIGSTOP)
    err = agent.communicate(timeout=200)[1]
    assert agent.returncode == 1, "as it always ends"
    assert re.search(rf"no heartbeat within run.heartbeat_timeout_s=6 of rank {victim} of 4, on host", err)
    assert f": killed rank {victim}, which torchrun would wait for" in err
    assert len(list((directory / "hang").glob("stacks-*"))) == 3
    assert not [number for number in numbers.values() if Path(f"/proc/{number}").exists()]


DIFFERENT = """
import os
from datetime import timedelta
from pathlib import Path
from pretrain.compose import hydra_command
from pretrain.distributed.world import joined
def collect(cfg):
    import torch
    with joined(timedelta(seconds=5), Path({files!r}), debug=True) as world:
        world.sum_ints(1)
        if world.rank == 0:
            world.sum_tensor(torch.ones(5, 2))
        {then}
hydra_command(collect)
"""


@pytest.mark.parametrize(
    ("then", "named"),
    [
        (
            "world.sum_ints(1, 2, 3)",
            "different collectives: rank 0 began collective 1, ALLREDUCE of Float [5, 2], at __main__, line 12, in "
            "collect; rank 1 began collective 1, ALLREDUCE of Long [3], at __main__, line 13, in collect; all ranks",
        ),
        (
            "import time; time.sleep(60)",
            "ranks 1 entered none by then; rank 1 of 2 waited in no collective (rank 1 was",
        ),
    ],
)
def test_a_collective_of_rank_0_alone_is_named(tmp_path, then, named):
    script = DIFFERENT.format(files=str(tmp_path), then=then)
    ranks = [Forked("-c", script, env=os.environ | own) for own in environments(2)]
    assert ranks[0].wait() == TimedOut.exit_code, ranks[0].stderr
    assert named in ranks[0].stderr.splitlines()[-1]
    if "sum_ints" in then:
        assert ranks[1].wait() == TimedOut.exit_code and named in ranks[1].stderr, ranks[1].stderr
    else:
        ranks[1].kill()


# A hook of one's own in which rank 1 alone enters a collective.
UNEVEN = """
import runpy
from dataclasses import dataclass
import torch
import torch.distributed as dist
from pretrain.registry import register
from pretrain.train.own_hooks import Hook, HookConfig

@register("hook", "uneven")
@dataclass(kw_only=True)
class UnevenConfig(HookConfig):
    def build(self):
        return Uneven()

class Uneven(Hook):
    def logged(self, record):
        if dist.get_rank() == 1 and record["step"] == 3:
            dist.all_reduce(torch.ones(5))

runpy.run_module("pretrain", run_name="__main__")
"""


@pytest.mark.parametrize("strategy", ["ddp", "zero1", "zero2", "zero3", "fsdp2", "hsdp"])
def test_a_run_whose_collectives_are_compared_is_the_same_until_they_differ(place, strategy):
    short = [f"strategy={strategy}", "train.steps=5", "train.micro_batch_size=2", "eval.every=0", "log.every=1"]
    compared = "run.debug_collectives=true"
    for name, *more in ((f"plain_{strategy}",), (f"compared_{strategy}", compared)):
        run(*tiny(name, *short, *more), ranks=2, cwd=place)
    plain, other = (column(place / "runs" / f"{name}_{strategy}", "loss") for name in ("plain", "compared"))
    assert plain == other
    words = tiny(f"uneven_{strategy}", *short, compared, "+hooks.uneven={}")
    ranks = [Forked("-c", UNEVEN, *words, cwd=place, env=os.environ | own) for own in environments(2)]
    assert end(ranks) == [TimedOut.exit_code] * 2, ranks[0].stderr
    said = ranks[0].stderr.splitlines()[-1]
    assert "different collectives: rank 0 began collective" in said and "ALLREDUCE of Float [5]" in said, said

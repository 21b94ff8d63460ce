"""Ranks and their devices: memory, the clock of a pause, NCCL's hangs and its end. Some need two devices."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from ranks import environments

from pretrain.distributed.recorder import TRACE
from pretrain.distributed.world import World
from pretrain.errors import TimedOut
from pretrain.train.metrics import Throughput

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]
two_devices = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")

GROWING = """
import torch
from pretrain.distributed.world import joined
with joined() as world:
    torch.empty(2**22, device=world.device)
    assert all(segment["is_expandable"] for segment in torch.cuda.memory_snapshot())
"""

# Rank 1 hangs in the middle of a step: rank 0 is stuck in a read of its device, behind a kernel that never ends.
STEPS = """
import sys, time, torch
from datetime import timedelta
from pathlib import Path
import torch.distributed as dist
from pretrain.compose import hydra_command
from pretrain.distributed.world import joined
def steps(cfg):
    with joined(timedelta(seconds=4), Path({files!r})) as world:
        for number in range(4):
            world.sum_ints(1)
            if number == 3 and world.rank == 1:
                {fault}
            world.sum_tensor(torch.ones(1000, device=world.device)).tolist()
hydra_command(steps)
"""


def ranks(script: str) -> list[subprocess.Popen[str]]:
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    line = [sys.executable, "-c", script]
    return [subprocess.Popen(line, env=environment | own, stderr=subprocess.PIPE, text=True) for own in environments(2)]


def test_memory_grows_in_segments_although_torch_is_imported_before_that_is_set():
    environment = {name: value for name, value in os.environ.items() if "ALLOC_CONF" not in name}
    subprocess.run([sys.executable, "-c", GROWING], env=environment, check=True, timeout=200)


def test_a_pause_begins_and_ends_when_the_device_is_done():
    world = World(rank=0, size=1, device=torch.device("cuda", 0))
    throughput = Throughput(0, 0, 1.0, None, finish=world.finish)

    def queue():
        torch.cuda._sleep(200_000_000)  # cycles
        event = torch.cuda.Event()
        event.record()
        return event

    before = queue()
    with throughput.paused():
        assert before.query(), "what was queued before the pause is no part of it"
        within = queue()
    assert within.query()


@two_devices
def test_a_hang_of_nccl_ends_as_one_and_names_the_silent_rank(tmp_path):
    waiting, silent = ranks(STEPS.format(files=str(tmp_path), fault="time.sleep(500)"))
    try:
        said = waiting.communicate(timeout=200)[1]
    finally:
        silent.send_signal(signal.SIGKILL)
        waiting.kill()
    assert waiting.returncode == TimedOut.exit_code, said
    assert "rank 1 of 2 waited in no collective" in said
    assert (tmp_path / f"{TRACE}0").stat().st_size > 0


@two_devices
def test_groups_are_gone_without_a_warning_at_the_end(tmp_path):
    for rank in ranks(STEPS.format(files=str(tmp_path), fault="pass")):
        said = rank.communicate(timeout=200)[1]
        assert rank.returncode == 0 and "destroy_process_group" not in said, said

"""Saving 57.8M parameters with their AdamW moments (693 MB): how long training waits, and until the step is on disk.

Holds the claim, the contestants and the table.

    python -m bench.checkpoint
    python -m bench.checkpoint --directory /mnt/disk --rounds 9

Every contestant saves the same tensors to the same disk, in turns; the time of one ends when its files are synced.
Between two boundaries of optimizer steps the loop here sleeps, so a stall is the sum of what saving takes at them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from bench.rounds import machine, medians
from pretrain.checkpoint.save import CheckpointConfig, Checkpoints
from pretrain.distributed.world import World, ensure_group
from pretrain.files import fsync_path
from pretrain.init_from import InitialWeights
from pretrain.models.attention.sdpa import sdpa
from pretrain.models.decoder import DecoderConfig
from pretrain.objectives.causal_lm import CausalLMConfig
from pretrain.optim.adamw import AdamWConfig
from pretrain.strategy.compile import CompileConfig
from pretrain.strategy.ddp import DDP, DDPConfig
from pretrain.strategy.precision import FP32

BOUNDARY_S = 0.01  # between two boundaries of steps


class Taken(NamedTuple):
    """Seconds of one save."""

    stall: float  # that training waits
    durable: float  # until everything is on disk


def trained() -> DDP:
    """Return a strategy whose model has taken one optimizer step, so that moments are there."""
    with torch.device("meta"):
        model = DecoderConfig(max_seq_len=1024, layers=10, width=512, heads=8).build(vocab_size=50257, attend=sdpa)
        module = CausalLMConfig().build(model)
    initial = InitialWeights(module, seed=1)
    strategy = DDPConfig().build(world=World.alone(), precision=FP32(), compilation=CompileConfig())
    strategy.setup(module, AdamWConfig().build)
    strategy.load_fragments(initial)
    for parameter in module.parameters():
        parameter.grad = torch.randn_like(parameter)
    strategy.step(1.0, 1.0)
    return strategy


class Headwater:
    """One run's checkpoints."""

    def __init__(self, directory: Path, strategy: DDP, *, asynchronous: bool) -> None:
        self.checkpoints = Checkpoints(directory, CheckpointConfig(asynchronous=asynchronous), World.alone())
        self.strategy = strategy
        self.step = 0

    def __call__(self) -> Taken:
        self.step += 1
        begin = time.perf_counter()
        self.checkpoints.save(self.step, self.strategy, {})
        stall = time.perf_counter() - begin
        while self.checkpoints.under_way:
            time.sleep(BOUNDARY_S)
            boundary = time.perf_counter()
            self.checkpoints.settle()
            stall += time.perf_counter() - boundary
        return Taken(stall, time.perf_counter() - begin)


def torch_save(directory: Path, state: dict) -> Callable[[], Taken]:
    """`torch.save`, after which training could go on, and then an fsync of file and directory."""

    def save() -> Taken:
        begin = time.perf_counter()
        path = directory / "state.pt"
        torch.save(state, path)
        stall = time.perf_counter() - begin
        fsync_path(path)
        fsync_path(directory)
        return Taken(stall, time.perf_counter() - begin)

    return save


def dcp_save(directory: Path, state: dict) -> Callable[[], Taken]:
    """torch's distributed checkpoint, which syncs its files."""

    def save() -> Taken:
        begin = time.perf_counter()
        dcp.save(state, checkpoint_id=directory / "dcp")
        taken = time.perf_counter() - begin
        return Taken(taken, taken)

    return save


def dcp_async_save(directory: Path, state: dict) -> Callable[[], Taken]:
    """The same in the background, its staging memory used again."""
    stager = DefaultStager(
        StagingOptions(
            use_pinned_memory=False, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=False
        )
    )

    def save() -> Taken:
        begin = time.perf_counter()
        done = dcp.async_save(state, checkpoint_id=directory / "dcp-async", async_stager=stager)
        stall = time.perf_counter() - begin
        (done if hasattr(done, "result") else done.upload_completion).result()
        return Taken(stall, time.perf_counter() - begin)

    return save


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=Path(), help="on the disk to be measured")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    strategy = trained()
    ensure_group(World.alone())
    state = {"model": strategy.module.state_dict(), "optimizer": strategy.optimizer.state_dict()}
    with tempfile.TemporaryDirectory(dir=args.directory) as folder:
        place = Path(folder)
        contestants: dict[str, Callable[[], Taken]] = {
            "headwater, synchronous": Headwater(place / "sync", strategy, asynchronous=False),
            "headwater, asynchronous": Headwater(place / "async", strategy, asynchronous=True),
            "torch.save + fsync": torch_save(place, state),
            "dcp.save": dcp_save(place, state),
            "dcp.async_save": dcp_async_save(place, state),
        }
        measured: dict[str, list[Taken]] = {name: [] for name in contestants}
        for number in range(-1, args.rounds):  # the round before the first allocates staging memory
            for name, save in contestants.items():
                for old in ("state.pt", "dcp", "dcp-async"):
                    shutil.rmtree(place / old) if (place / old).is_dir() else (place / old).unlink(missing_ok=True)
                os.sync()
                taken = save()
                if number >= 0:
                    measured[name].append(taken)
                elif name == "headwater, asynchronous":
                    print(f"first asynchronous save: {taken.stall:.3f} s of stall")
    stalls = medians({name: [one.stall for one in taken] for name, taken in measured.items()})
    durables = medians({name: [one.durable for one in taken] for name, taken in measured.items()})
    print(f"57.8M parameters with moments, {args.threads} threads, medians of {args.rounds} interleaved saves, seconds")
    print(machine("torch"))
    print(f"{'':<26}{'stall':>10}{'durable':>10}{'fastest':>10}{'slowest':>10}")
    for name, taken in measured.items():
        seconds = [one.durable for one in taken]
        print(f"{name:<26}{stalls[name]:>10.3f}{durables[name]:>10.3f}{min(seconds):>10.3f}{max(seconds):>10.3f}")
    own, background = durables["headwater, synchronous"], stalls["headwater, asynchronous"]
    print(f"synchronous save / torch.save + fsync: {own / durables['torch.save + fsync']:.2f}")
    print(f"asynchronous stall / synchronous save: {background / own:.2f}")
    print(f"asynchronous stall / dcp.async_save: {background / stalls['dcp.async_save']:.2f}")


if __name__ == "__main__":
    main()

"""`train.micro_batch_size=auto` where the device is fuller than was planned: the next size, and no trace of the larger.

One process may take `LIMIT` bytes, which the plan does not know.
"""

import gc
import json
import os
import subprocess
import sys

import pytest
import torch
from ranks import FAST, tiny

from pretrain.data.batch import Batch
from pretrain.models.attention.sdpa import SdpaConfig, sdpa
from pretrain.models.decoder import DecoderConfig
from pretrain.objectives.causal_lm import CausalLMConfig
from pretrain.optim.adamw import AdamWConfig
from pretrain.strategy.compile import CompileNone
from pretrain.strategy.ddp import DDPConfig
from pretrain.strategy.fsdp2 import FSDP2Config
from pretrain.strategy.precision import BF16
from pretrain.strategy.zero import ZeROConfig
from pretrain.train.batch_growth import GrowthConfig
from pretrain.train.micro_batches import Passes, divisors, found

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cuda", 0)
SEQ_LEN, SHARE = 512, 49  # tokens; sequences of a step, whose divisors are far apart: predictions may be off by a third
PLANNED, NEXT, LEAST = divisors(SHARE, SHARE)
LIMIT = 2 * 2**30  # bytes: 49 sequences take about 4 GiB, 7 take 1 GiB
STRATEGIES = {"ddp": DDPConfig(), "fsdp2": FSDP2Config(), "zero2": ZeROConfig(stage=2), "zero3": ZeROConfig(stage=3)}

LIMITED = """
import runpy, sys, torch
torch.cuda.set_per_process_memory_fraction(float(sys.argv.pop(1)))
runpy.run_module("pretrain", run_name="__main__", alter_sys=True)
"""


def passes_of(strategy, world) -> Passes:
    """Return those of a decoder of 26 million parameters."""

    def build(attend=None):
        config = DecoderConfig(max_seq_len=SEQ_LEN, width=512, layers=8, heads=8)
        with torch.device("meta"):
            return CausalLMConfig(chunk_tokens=2048).build(config.build(vocab_size=1024, attend=attend or sdpa))

    parameters = sum(parameter.numel() for parameter in build().parameters())
    return Passes(
        build=build,
        densest=lambda size: Batch.of(CausalLMConfig().densest(size, SEQ_LEN)),
        memory=strategy.memory(parameters, ranks=1, precision=BF16()),
        strategy=strategy,
        precision=BF16(),
        compilation=CompileNone(),
        attention=SdpaConfig(),
        make_optimizer=AdamWConfig().build,
        world=world,
    )


def share_of_device(size: int) -> float:
    """Return the share of the device's memory that so many bytes are."""
    return size / torch.cuda.get_device_properties(DEVICE).total_memory


@pytest.fixture
def limited():
    """This process may take `LIMIT` bytes more than it has."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(share_of_device(torch.cuda.memory_reserved(DEVICE) + LIMIT), DEVICE)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0, DEVICE)


@pytest.mark.parametrize("name", STRATEGIES)
def test_what_does_not_fit_gives_way_to_the_next_size_and_leaves_no_memory(world, limited, caplog, name):
    caplog.set_level("INFO", "pretrain")
    passes = passes_of(STRATEGIES[name], world)
    assert passes.needs(NEXT).total < LIMIT / 1.4 < LIMIT * 1.4 < passes.needs(PLANNED).total
    assert passes.fit(LEAST, passes=2)  # handles of libraries and their memory come into being

    def check_trace():
        added = [now - then for now, then in zip(memory(), before, strict=True)]
        assert max(added) < 0.05 * sum(passes.memory), f"bytes of tensors, and those that torch keeps: {added}"

    before = memory()
    assert not passes.fit(PLANNED, passes=1)
    check_trace()
    entry = found(GrowthConfig(batch_size=SHARE, micro_batch_size="auto"), SEQ_LEN, passes, None)
    check_trace()
    assert entry["size"] == NEXT and entry["for"]["device"] == torch.cuda.get_device_name(DEVICE)
    assert f"{PLANNED} sequences a micro-batch do not fit into the device's memory" in caplog.text
    assert f"{NEXT} sequences a micro-batch, planned for" in caplog.text


def memory() -> tuple[int, int]:
    """Return the bytes of tensors, and those that torch keeps."""
    return torch.cuda.memory_allocated(DEVICE), torch.cuda.memory_reserved(DEVICE)


def test_a_run_trains_with_the_next_size_and_records_it(place):
    shape = ["model.width=512", "model.layers=8", "model.heads=8", f"data.seq_len={SEQ_LEN}", "compile=none"]
    steps = ["train.steps=2", "schedule.warmup_steps=1", f"train.batch_size={SHARE}", "train.micro_batch_size=auto"]
    line = [
        sys.executable,
        "-c",
        LIMITED,
        str(share_of_device(LIMIT)),
        *tiny("limited", "precision=bf16", *shape, *steps),
    ]
    environment = {key: value for key, value in (os.environ | FAST).items() if key != "CUDA_VISIBLE_DEVICES"}
    subprocess.run(line, cwd=place, env=environment, check=True, timeout=280)
    directory = place / "runs" / "limited"
    assert json.loads((directory / "run.json").read_text())["micro_batch"]["size"] == NEXT
    assert (
        f"{PLANNED} sequences a micro-batch do not fit into the device's memory" in (directory / "log.txt").read_text()
    )

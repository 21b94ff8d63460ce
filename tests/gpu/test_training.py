"""Training on a CUDA device: the host never waits between log steps, and a whole run learns what a CPU learns."""

import gzip
import json
import os
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from looped import LENGTHS, STEPS, take_steps
from ranks import FAST, column, command, run, tiny

from pretrain.distributed.world import World
from pretrain.models.attention.flash import FlashConfig
from pretrain.models.attention.sdpa import sdpa
from pretrain.objectives.cross_entropy import chunk_loss, linear_cross_entropy
from pretrain.optim.adamw import AdamWConfig
from pretrain.optim.muon import MuonConfig
from pretrain.strategy.compile import fused
from pretrain.strategy.precision import BF16, FP16, FP32

pytestmark = pytest.mark.gpu


@contextmanager
def no_waiting():
    """Have torch raise an error where the host waits for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("optim", [AdamWConfig(), MuonConfig()])
@pytest.mark.parametrize(
    ("precision", "attention"), [(FP32(), "sdpa"), (BF16(), "sdpa"), (BF16(), "flash"), (FP16(), "flash")]
)
def test_the_host_never_waits_between_log_steps(precision, attention, optim):
    attend = FlashConfig().build() if attention == "flash" else sdpa
    world = World(rank=0, size=1, device=torch.device("cuda", 0))
    take_steps(world, optim, precision, attend, pin=True)  # handles and caches of libraries come into being
    state, asked = take_steps(world, optim, precision, attend, pin=True, during=no_waiting())
    assert state.tokens == STEPS * 2 * sum(LENGTHS)
    assert asked == [f"log {STEPS}", f"save {STEPS} True"]


def losses_on_gpu(place: Path, name: str, *overrides: str) -> dict[int, object]:
    """Return the loss of each step of a run on the device."""
    environment = {key: value for key, value in (os.environ | FAST).items() if key != "CUDA_VISIBLE_DEVICES"}
    subprocess.run(command(*tiny(name, *overrides)), cwd=place, env=environment, check=True, timeout=280)
    return column(place / "runs" / name, "loss")


def farthest(losses: dict[int, object], others: dict[int, object]) -> float:
    """Return the largest difference of two runs' losses at a step."""
    return max(abs(losses[step] - others[step]) for step in range(1, 25))


@pytest.mark.parametrize(
    ("overrides", "tolerance"),
    [
        (["precision=fp32", "precision.tf32=false", "attention=sdpa"], 1e-3),
        (["precision=fp32"], 1e-2),  # in TF32
        (["precision=bf16"], 0.05),
        (["precision=fp16"], 0.05),
        (["precision=bf16", "compile=block"], 0.05),
        (["precision=bf16", "strategy.activation_checkpointing=full"], 0.05),
        *(
            ([f"precision={precision}", f"strategy={strategy}"], 0.05)
            for precision in ("bf16", "fp16")
            for strategy in ("zero2", "zero3", "fsdp2")
        ),
    ],
    ids=str,
)
def test_a_run_learns_what_it_learns_on_a_cpu(place, one_process, overrides, tolerance):
    name = "-".join(overrides).replace("=", "-")
    assert farthest(losses_on_gpu(place, name, *overrides), column(one_process, "loss")) <= tolerance
    log = (place / "runs" / name / "log.txt").read_text()
    assert "memory after the first steps: tensors of" in log and "the prediction is wrong" not in log


def test_a_run_with_flex_learns_what_it_learns_on_a_cpu(place):
    wider = ["precision=fp32", "precision.tf32=false", "model.heads=2"]  # heads of 16, the narrowest that flex takes
    run(*tiny("wider-heads", *wider), cwd=place)
    found = losses_on_gpu(place, "wider-heads-flex", *wider, "attention=flex")
    assert farthest(found, column(place / "runs" / "wider-heads", "loss")) <= 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_loss_of_a_padded_vocabulary_fused_or_not(dtype):
    """An odd vocabulary, uneven chunks, gradients of the weight summed in fp32, against float64; no further graph."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    torch.manual_seed(1)
    arithmetic = fused(chunk_loss)
    for tokens in (300, 517, 1030):
        exact = [
            torch.randn(*shape, dtype=torch.float64, device="cuda") for shape in ((tokens, 64), (1003, 64), (1003,))
        ]
        targets = torch.randint(1003, (tokens,), device="cuda")
        learnt = [each.to(dtype).double().requires_grad_() for each in exact]
        expected = F.cross_entropy(learnt[0] @ learnt[1].T + learnt[2], targets, reduction="sum")
        wanted = torch.autograd.grad(expected, learnt)
        for each in (chunk_loss, arithmetic):
            hidden, weight, bias = (part.detach().float().requires_grad_() for part in learnt)
            with torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
                options = {"num_targets": tokens, "bias": bias, "chunk_tokens": 300, "arithmetic": each}
                total, _, _ = linear_cross_entropy(hidden, weight, targets, **options)
            torch.testing.assert_close(total, expected.float(), rtol=1e-3, atol=0)
            for found, right in zip(torch.autograd.grad(total, (hidden, weight, bias)), wanted, strict=True):
                assert (found - right).norm() < 2e-2 * right.norm()  # logits in bf16, here about 30: 0.9e-2 on a CPU
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("strategy", ["zero1", "fsdp2"])
def test_muon_and_an_untied_head_learn_on_shards_what_they_learn_whole(place, strategy):
    more = ["precision=bf16", "optim=muon", "model.tie_embeddings=false"]
    whole, shards = (
        losses_on_gpu(place, f"muon-beside-{strategy}-{name}", *more, f"strategy={name}") for name in ("ddp", strategy)
    )
    assert farthest(whole, shards) <= 0.05


def test_a_profile_has_kernels_and_the_history_of_memory(place):
    losses_on_gpu(place, "profiled", "precision=bf16", "profile.steps=[3,5]")
    folder = place / "runs" / "profiled" / "profile" / "steps-3-5"
    table = json.loads((folder / "rank-0.json").read_text())
    assert table["device"] == "cuda" and table["total_ms"] > 0 and "aten::mm" in str(table["operators"])
    trace = json.loads(gzip.decompress((folder / "rank-0.trace.json.gz").read_bytes()))
    assert {"kernel", "cpu_op"} <= {event.get("cat") for event in trace["traceEvents"]}
    memory = json.loads(gzip.decompress((folder / "rank-0.memory.json.gz").read_bytes()))
    assert memory["segments"] and {"alloc", "free_completed"} <= {
        entry["action"] for entry in memory["device_traces"][0]
    }

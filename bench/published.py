"""Published training runs on H100 beside what `roofline` estimates for them; no GPU is needed, none was used.

Holds their figures and sources, and the comparison. The estimate's arithmetic is in `roofline`.

    python -m bench.published
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, NamedTuple

from bench import fake_gpu_guard
from bench.roofline import H100, RANKS, Device, micro_batch_times, step_of

if TYPE_CHECKING:
    from bench.traced_kernels import Trace


class Run(NamedTuple):
    """A run, as settings of a preset that has its shape."""

    source: str
    shape: str
    settings: str  # of the preset, the experiment first
    sequences: int  # of a micro-batch
    micro_batches: int  # of a step
    tokens_per_s: float  # of one GPU, published
    compiled: str = "no"  # or blocks, or all: with the loss
    recomputed: str = "none"
    device: Device = H100
    fitted: bool = False  # constants of the device are from it; others are held out


# pytorch/torchtitan, benchmarks/llama3_h100_202412_torchtitan.md, table 1: HBM2e of 2.4 TB/s, a limit of 500 W.
TITAN = H100._replace(bytes_s=2.4e12, clock=0.85)  # the clock is fitted on the eager run; it is the root of 500 / 700
TITAN_8B = ("torchtitan", "Llama 3.1 8B, T=8192", "llama_8b strategy=fsdp2 data.seq_len=8192", 2, 1)

# foundation-model-stack/fms-fsdp, README of May 2024 as issue 89 quotes it: 96 GPUs, hsdp.
FMS_7B = "llama_8b model.kv_heads=32 model.mlp_width=11008 tokenizer.vocab_size=32000"

# KellerJordan/modded-nanogpt, records/101324_llmc: 139 ms for 524,288 tokens, all in bf16, kernels fused by hand.
LLM_C = 524288 / 8 / 0.139

OTHERS = [
    Run(*TITAN_8B, 5762, recomputed="per operator", device=TITAN, fitted=True),
    Run(*TITAN_8B, 6667, compiled="blocks", recomputed="per operator", device=TITAN),
    Run("llm.c", "GPT-2 124M, T=1024", "gpt2_124m strategy=fsdp2", 64, 1, LLM_C, compiled="all"),
    Run("fms-fsdp", "Llama 2 7B, T=4096", FMS_7B, 2, 1, 9600, compiled="blocks"),
]

# mosaicml/llm-foundry, scripts/train/benchmarking/README.md, "H100 80GB BF16": FSDP, eager. All runs on 8 GPUs with
# sequences of at most 8,192 tokens: model, tokens of a sequence, micro-batch, accumulation, recomputation, tokens/s.
# Shapes: scripts/train/yamls/pretrain/mpt-*.yaml. Vectors of positions stand for ALiBi. Every second run is held out.
FOUNDRY = """
30b  8192  1 21 full  1384
30b  4096  1 21 full  1802
30b  2048  3 21 full  2002
30b  1024  6 21 full  2084
13b  4096 10  3 full  4717
13b  2048  2  1 none  4792
13b  1024 40  3 full  5502
7b   8192  8  2 full  6935
7b   4096 16  2 full  8611
7b   2048  6  1 none 10643
7b   1024 64  2 full 10203
3b   8192  3  6 none 16578
3b   4096  5  6 none 20964
3b   1024 20  6 none 27046
3b    512 40  6 none 27965
1b   8192  3  4 none 29157
1b   4096  7  4 none 38535
1b   2048 14  1 none 45455
1b   1024 18  4 none 48910
1b    512 56  4 none 52275
760m 8192  6  2 none 41825
760m 4096 12  2 none 55459
760m 2048 24  2 none 63147
760m 1024 48  2 none 78581
760m  512 96  2 none 83749
"""
WIDTHS = {"760m": 1536, "1b": 2048, "3b": 2560, "7b": 4096, "13b": 5120, "30b": 7168}  # heads have 128 dimensions
LAYERS = {"760m": 24, "1b": 24, "3b": 32, "7b": 32, "13b": 40, "30b": 48}
OLD_ATTENTION = H100._replace(attention=0.15)  # fitted: its kernel of 2023


def _foundry(line: str, fitted: bool) -> Run:
    model, seq_len, sequences, micro_batches, recomputed, tokens_per_s = line.split()
    width = WIDTHS[model]
    settings = (
        f"gpt2_1558m strategy=fsdp2 model.width={width} model.layers={LAYERS[model]} model.heads={width // 128} "
        f"model.bias=false tokenizer.vocab_size=50368 data.seq_len={seq_len}"
    )
    return Run(
        source="LLM Foundry",
        shape=f"MPT {model}, T={seq_len}",
        settings=settings,
        sequences=int(sequences),
        micro_batches=int(micro_batches),
        tokens_per_s=float(tokens_per_s),
        recomputed=recomputed,
        device=OLD_ATTENTION,
        fitted=fitted,
    )


RUNS = OTHERS + [_foundry(line, number % 2 == 0) for number, line in enumerate(FOUNDRY.strip().split("\n"))]


def trace_of(run: Run) -> Trace:
    """Count a micro-batch of a run."""
    from bench.traced_kernels import trace

    experiment, *settings = run.settings.split()
    batch = RANKS * run.sequences * run.micro_batches
    size = [f"train.batch_size={batch}", f"train.micro_batch_size={run.sequences}"]
    return trace(experiment, [*settings, *size], sequences=run.sequences)


def ratio(run: Run, trace: Trace, **factors: float) -> float:
    """Return the estimate over what was published; `factors` are multiplied into constants of the run's device."""
    device = run.device._replace(**{name: getattr(run.device, name) * factor for name, factor in factors.items()})
    micro = micro_batch_times(trace, device, compiled=run.compiled != "no", fused_loss=run.compiled == "all")
    return step_of(trace, micro, run.recomputed, run.sequences, device).tokens_per_s / run.tokens_per_s


def main() -> None:
    """Print all runs, and how well the estimate agrees with those that its constants are not from."""
    fake_gpu_guard.load()
    ratios: dict[bool, list[float]] = {True: [], False: []}
    print("Tokens/s of one H100 of eight; estimates are not measured. A star: constants are fitted on this run.\n")
    print(f"{'source':11} {'shape':20} {'micro-batches':13} compiled recomputed    published estimated ratio")
    for run in RUNS:
        found = ratio(run, trace_of(run))
        ratios[run.fitted].append(found)
        size = f"{run.micro_batches} x {run.sequences}"
        print(
            f"{run.source:11} {run.shape:20} {size:13} {run.compiled:8} {run.recomputed:12} "
            f"{run.tokens_per_s:10,.0f} {found * run.tokens_per_s:9,.0f} {found:5.2f} {'*' if run.fitted else ''}"
        )
    for fitted, found in ratios.items():
        off = statistics.median(abs(each - 1) for each in found)
        print(
            f"\n{'Fitted' if fitted else 'Held out'}, {len(found)} runs: ratio {min(found):.2f} to {max(found):.2f}, "
            f"median {statistics.median(found):.2f}; half are off by less than {off:.1%}"
        )


if __name__ == "__main__":
    main()

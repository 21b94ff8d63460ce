"""An estimate of a training step's time on 8 H100 for each preset, from counts; no GPU is needed, none was used.

Holds the arithmetic. Kernels with their operations and bytes are counted by `traced_kernels`. What is assumed or fitted
stands in `Device`, is printed under the table, and is to be replaced by figures of `bench.gpu` on the day there is one;
`published` says how far from published runs the estimates are.

    python -m bench.roofline
    python -m bench.roofline --experiment llama_8b --micro-batch 2
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench import fake_gpu_guard

if TYPE_CHECKING:
    from bench.traced_kernels import Kernel, Trace

CONF = Path(__file__).parents[1] / "conf" / "experiment"
RANKS = 8


class Device(NamedTuple):
    """A GPU: peaks of its data sheet, shares of them that programs reach, and seconds that launches take.

    Those called fitted are from the published runs of `published`, whatever they stand for: what is not counted (passes
    of Python code, fragmentation, clocks that fall under load) is in them.
    """

    flops_s: float = 989.4e12  # NVIDIA H100 SXM: dense bf16 with fp32 accumulation
    bytes_s: float = 3.35e12  # HBM3
    link_bytes_s: float = 450e9  # NVLink, one direction
    product: float = 0.70  # fitted; one that suits the device alone has reached 780 TFLOP/s, 0.79
    unaligned: float = 0.35  # assumed: half, of products whose rows do not begin at multiples of 16 bytes
    attention: float = 0.30  # assumed; forward FlashAttention-2 reaches 0.35 (Shah et al. 2024), backward less
    memory: float = 0.80  # assumed, of a pass over memory
    link: float = 0.80  # assumed: NCCL's bus bandwidth on one node
    contended: float = 0.50  # assumed (0.25 to 0.7 fit alike): what hides a collective gets longer by this share of it
    clock: float = 1.0  # of the clock at 700 W; counts for products and attention
    host_s: float = 5e-6  # assumed: host's time for a launch from Python, forward or backward
    device_s: float = 2e-6  # assumed: device's least time for a kernel


H100 = Device()
RECOMPUTED = ("none", "selective", "full")


NOTES = f"""
Of an H100: {", ".join(f"{name} {value:g}" for name, value in H100._asdict().items())}.
Eager launches each operator; compiled joins passes over the same memory between two products. Wire: sent by a rank in a
step, where hsdp on one node is fsdp2. MFU counts as the product does: all keys of a sequence, nothing that is computed
twice. Over published tokens/s of 15 runs that the constants are not fitted on the estimate is 0.91 to 1.10, median 1.01
(`python -m bench.published`). Those programs were tuned by many people; Headwater has run on no such GPU."""


class Times(NamedTuple):
    """Seconds of the device for some kernels, and their number."""

    product: float
    attention: float
    memory: float
    launches: int

    @property
    def device(self) -> float:
        return self.product + self.attention + self.memory

    def total(self, device: Device) -> float:
        """What is longer: computing, or launching."""
        return max(self.device, self.launches * device.host_s)

    def plus(self, other: Times) -> Times:
        return Times(*map(sum, zip(self, other, strict=True)))


NOTHING = Times(0.0, 0.0, 0.0, 0)


def times_of(kernels: Iterable[Kernel], device: Device) -> Times:
    """Return the times of kernels: of each its operations and its bytes, as tiles are not read while none computes.

    Whatever is longer would be the roofline; small widths then come out too fast by a tenth beside published runs.
    """
    from bench.traced_kernels import Kind

    found = dict.fromkeys(Kind, 0.0)
    number = 0
    for kernel in kernels:
        number += 1
        share = {
            Kind.product: device.product if kernel.aligned else device.unaligned,
            Kind.attention: device.attention,
            Kind.memory: 1.0,
        }[kernel.kind]
        computing = kernel.flops / (device.flops_s * device.clock * share)
        moving = kernel.bytes / (device.bytes_s * device.memory)
        found[kernel.kind] += max(computing + moving, device.device_s)
    return Times(found[Kind.product], found[Kind.attention], found[Kind.memory], number)


class MicroBatch(NamedTuple):
    """The times of a micro-batch, apart from what is computed twice."""

    passes: Times  # forward and backward
    outside: Times  # of these, outside of blocks
    again: dict[str, Times]  # what recomputation adds, by its name
    launches_per_block: tuple[int, int]  # forward and backward, of the last block


def micro_batch_times(trace: Trace, device: Device, *, compiled: bool, fused_loss: bool) -> MicroBatch:
    """Return the times of a micro-batch. `compiled` fuses blocks, `fused_loss` what is outside of them as well."""
    from bench.traced_kernels import Kind, fused

    last_read: dict[int, int] = {}
    for number, kernel in enumerate(trace.kernels):
        last_read |= dict.fromkeys(kernel.reads, number)

    def needed(storage: int, number: int) -> bool:
        return storage in trace.kept or last_read.get(storage, -1) > number

    joined = fused(trace.kernels, needed)
    inner, outer = joined if compiled else trace.kernels, joined if compiled and fused_loss else trace.kernels
    outside = times_of((kernel for kernel in outer if kernel.block is None), device)
    passes, again = outside, dict.fromkeys((*RECOMPUTED, "per operator"), NOTHING)
    launches = (0, 0)
    for traced in trace.blocks:
        own = [kernel for kernel in inner if kernel.block == traced]
        forward = [kernel for kernel in own if kernel.phase == "forward"]
        passes = passes.plus(times_of(own, device))
        passing = [kernel for kernel in forward if kernel.kind is Kind.memory]
        products = [kernel for kernel in forward if kernel.kind is Kind.product]
        # torchtitan's "selective, per operator" keeps every second product
        for name, run in (("selective", passing), ("full", forward), ("per operator", passing + products[1::2])):
            again[name] = again[name].plus(times_of(run, device))
        launches = len(forward), len(own) - len(forward)
    return MicroBatch(passes, outside, again, launches)


class Traffic(NamedTuple):
    """Bytes that a rank sends in a step."""

    each: float  # in each micro-batch
    last: float  # with the last one


def traffic(trace: Trace) -> Traffic:
    """Return what data parallelism sends: rings of `RANKS` carry (RANKS - 1) / RANKS of what is gathered or reduced.

    FSDP2 gathers bf16 weights for the forward and again for the backward pass and scatters reduced gradients, in each
    micro-batch unless these are kept whole; DDP reduces all gradients once, which is scattering and gathering them.
    """
    strategy, size, share = trace.cfg.strategy, trace.num_parameters, (RANKS - 1) / RANKS
    reduced = strategy.reduce_dtype.dtype.itemsize * size * share
    if not strategy.shards_weights:
        return Traffic(0.0, 2 * reduced)
    gathered = trace.cfg.precision.dtype.itemsize * size * share
    kept, whole = not strategy.reshard_after_forward, strategy.accumulate_whole_gradients
    each = (0.0 if kept else 2 * gathered) + (0.0 if whole else reduced)
    return Traffic(each, (gathered if kept else 0.0) + (reduced if whole else 0.0))


def update_seconds(trace: Trace, device: Device) -> float:
    """Return the time of clipping and fused AdamW: the norm reads gradients, clipping reads and writes them, and AdamW.

    AdamW reads weights, gradients and two moments and writes all but gradients: 4, 8 and 28 bytes a parameter.
    """
    held = trace.num_parameters / (RANKS if trace.cfg.strategy.shards_weights else 1)
    return 40 * held / (device.bytes_s * device.memory)


class Step(NamedTuple):
    """A step of one rank."""

    seconds: float
    exposed: float  # of them, waiting for other ranks or made slower by collectives
    tokens_per_s: float  # of one GPU
    mfu: float


def step_of(trace: Trace, micro: MicroBatch, recomputed: str, sequences: int, device: Device) -> Step:
    """Return the step of the preset's batch on `RANKS` GPUs, in micro-batches of so many sequences."""
    number = max(1, trace.cfg.train.batch_size // (sequences * RANKS))
    computing = micro.passes.plus(micro.again[recomputed]).total(device)
    sent, rate = traffic(trace), device.link_bytes_s * device.link
    exposed = number * exposed_seconds(sent.each / rate, computing, device)
    # What is sent once is hidden behind the last backward pass, two thirds of the micro-batch.
    exposed += exposed_seconds(sent.last / rate, computing * 2 / 3, device)
    seconds = number * computing + exposed + update_seconds(trace, device)
    tokens = number * sequences * trace.cfg.data.seq_len
    flops = trace.module.flops_per_token(trace.cfg.data.seq_len)
    return Step(seconds, exposed, tokens / seconds, tokens * flops / seconds / device.flops_s)


def exposed_seconds(sending: float, computing: float, device: Device) -> float:
    """Return what a step gets longer by for collectives of `sending` seconds beside `computing` seconds.

    Hidden ones take multiprocessors and memory from the computation that hides them.
    """
    hidden = min(sending, computing)
    return device.contended * hidden + sending - hidden


class Estimate(NamedTuple):
    """What is estimated of a preset."""

    name: str
    trace: Trace
    sequences: int  # of a micro-batch
    ways: dict[str, MicroBatch]  # eager and compiled

    @property
    def chosen(self) -> str:
        """The recomputation that the preset chooses."""
        return self.trace.cfg.strategy.activation_checkpointing.value

    def step(self, way: str, recomputed: str) -> Step:
        return step_of(self.trace, self.ways[way], recomputed, self.sequences, H100)


def estimate(experiment: str, overrides: list[str], sequences: int | None, fused_loss: bool) -> Estimate:
    """Count a micro-batch of a preset and estimate it, eager and compiled by blocks."""
    from bench.traced_kernels import micro_batch, trace

    traced = trace(experiment, overrides, sequences=sequences)
    eager = micro_batch_times(traced, H100, compiled=False, fused_loss=False)
    compiled = micro_batch_times(traced, H100, compiled=True, fused_loss=fused_loss)
    return Estimate(experiment, traced, sequences or micro_batch(traced.cfg), {"eager": eager, "compiled": compiled})


def print_micro_batches(estimates: list[Estimate]) -> None:
    """Print what is counted, and what each part of a micro-batch takes without recomputation; of compiled in brackets.

    `outside` of blocks is in the three parts before it, too. `launching` is the host's time; a micro-batch takes that
    or the device's, whatever is longer.
    """
    heads = (
        "tokens  launches a block  wire GB  products  attention         memory        outside      launching  update"
    )
    print(f"{'ms of a micro-batch':17} {'strategy':8} {heads}  exposed")
    for each in estimates:
        cfg, ways = each.trace.cfg, list(each.ways.values())
        sent, number = traffic(each.trace), max(1, cfg.train.batch_size // (each.sequences * RANKS))
        launched = " ".join(f"{'+'.join(map(str, way.launches_per_block)):>8}" for way in ways)
        parts = [[way.passes.memory, way.outside.device, H100.host_s * way.passes.launches] for way in ways]
        both = "  ".join(f"{1e3 * first:6.1f} ({1e3 * second:5.1f})" for first, second in zip(*parts, strict=True))
        print(
            f"{each.name:17} {type(cfg.strategy).__name__.removesuffix('Config').lower():8} "
            f"{each.sequences * cfg.data.seq_len:6} {launched} {(number * sent.each + sent.last) / 1e9:8.2f} "
            f"{1e3 * ways[0].passes.product:9.1f} {1e3 * ways[0].passes.attention:10.1f}  {both} "
            f"{1e3 * update_seconds(each.trace, H100):7.1f} {1e3 * each.step('compiled', each.chosen).exposed:8.1f}"
        )


def print_steps(estimates: list[Estimate]) -> None:
    """Print tokens/s and MFU for each way of running and of recomputing; a star is at what the preset recomputes."""
    columns = [(way, recomputed) for way in ("eager", "compiled") for recomputed in RECOMPUTED]
    print(f"{'tokens/s of a GPU':17} " + " ".join(f"{' '.join(column):>19}" for column in columns))
    for each in estimates:
        cells = []
        for way, recomputed in columns:
            step = each.step(way, recomputed)
            star = "*" if recomputed == each.chosen else " "
            cells.append(f"{step.tokens_per_s:11,.0f} {step.mfu:5.1%} {star}")
        print(f"{each.name:17} " + " ".join(f"{cell:>19}" for cell in cells))


def main() -> None:
    """Print the tables for one preset or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", help="KEY=VALUE as `python -m pretrain` takes them")
    parser.add_argument("--experiment", help="one preset; default: all but the demos")
    parser.add_argument("--micro-batch", type=int, help="sequences of a micro-batch; default: the preset's")
    parser.add_argument("--eager-loss", action="store_true", help="compiled: blocks alone, not the passes over logits")
    options = parser.parse_args()
    if reason := fake_gpu_guard.missing():
        parser.exit(2, f"{reason}\n")
    fake_gpu_guard.load()
    presets = sorted(path.stem for path in CONF.glob("*.yaml") if not path.stem.startswith("demo"))
    names = [options.experiment] if options.experiment else presets
    estimates = [estimate(name, options.settings, options.micro_batch, not options.eager_loss) for name in names]
    print(f"Estimated, not measured: {RANKS} H100 SXM on one node, whole sequences, bf16.\n")
    print_micro_batches(estimates)
    print()
    print_steps(estimates)
    print(NOTES)


if __name__ == "__main__":
    main()

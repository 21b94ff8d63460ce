"""What `bench.traced_kernels` counts of a preset, as JSON; for processes of `fake_cuda`."""

from __future__ import annotations

from bench.published import RUNS, ratio, trace_of
from bench.traced_kernels import Kind, trace


def counted_flops(experiment: str, sequences: int) -> dict[str, float]:
    """Return the operations of products and of attention a token, all blocks counted, and what the model says."""
    traced = trace(experiment, sequences=sequences)
    seq_len = traced.cfg.data.seq_len
    found = {"formula": traced.module.flops_per_token(seq_len)}
    for kind in (Kind.product, Kind.attention):
        places = [None, *traced.blocks]
        own = [each for each in traced.kernels if each.kind is kind]
        total = sum(each.flops for place in places for each in own if each.block == place)
        found[kind.value] = total / (sequences * seq_len)
    return found


def published_ratios(source: str, factors: list[dict[str, float]]) -> list[float]:
    """Return, of the held-out run of a source, the estimate over the published speed; constants times some factors."""
    (run,) = (run for run in RUNS if run.source == source and not run.fitted)
    traced = trace_of(run)
    return [ratio(run, traced, **each) for each in factors]

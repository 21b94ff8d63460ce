"""What `bench.traced_kernels` counts of a preset, as JSON; for processes of `fake_cuda`."""

from __future__ import annotations

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

"""How a run computes: what products of matrices run in, and which kernels attention takes.

Holds when these are chosen for the process and what is said of them; precisions and backends choose.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from pretrain.distributed.world import World
from pretrain.registry import choices


@contextmanager
def products_of(cfg: Any, device: torch.device) -> Iterator[None]:
    """Set what the run's precision says of products; at the end, undo this and what `start_kernels` changed."""
    with cfg.precision.products(device):
        try:
            yield
        finally:
            cfg.attention.end()


def start_kernels(cfg: Any, network: Any, world: World) -> str:
    """Choose the kernels of attention for a network, and return the line of the plan about computing. A collective.

    `cfg` is the root configuration. Warns of a compiler that gains little on the device. Raises `ConfigError` for
    kernels that are asked for by name and cannot be had.
    """
    cfg.compile.advise(world.device.type)
    said = "tf32" if cfg.precision.takes_tf32(world.device) else choices()[type(cfg.precision)][1]
    if use := network.attention_use:
        said += f", attention by {cfg.attention.start(replace(use, dtype=cfg.precision.dtype), world.device)}"
    return "products in " + "; on other ranks ".join(dict.fromkeys(world.gather(said)))

"""Ranks that are threads of one process: code that asks the world alone runs on several of them, in milliseconds."""

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from pretrain.distributed.world import World

PATIENCE_S = 30.0  # that a rank waits for the others in a collective


class _Exchange:
    """A place where each of `size` threads leaves a value and takes those of all."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=PATIENCE_S)
        self._values: list[Any] = [None] * size

    def __call__(self, rank: int, value: Any) -> list[Any]:
        self._values[rank] = value
        self.barrier.wait()
        values = list(self._values)
        self.barrier.wait()  # nobody leaves the next value before all have these
        return values


@dataclass(frozen=True)
class ThreadWorld(World):
    """A world whose collectives meet in memory."""

    exchange: _Exchange

    def sum_ints(self, *values):
        return [sum(column) for column in zip(*self.exchange(self.rank, values), strict=True)]

    def sum_tensor(self, value):
        return torch.stack(self.exchange(self.rank, value.clone())).sum(0)

    def gather(self, message):
        return [json.loads(text) for text in self.exchange(self.rank, json.dumps(message))]

    def all_to_all(self, sent, sizes_to, sizes_from):
        received = [parts[self.rank] for parts in self.exchange(self.rank, sent.split(sizes_to))]
        assert [len(part) for part in received] == sizes_from
        return torch.cat(received)

    def barrier(self):
        self.exchange(self.rank, None)


def on_threads(size: int, body: Callable[[ThreadWorld], Any]) -> list[Any]:
    """Return what `body` returns on each rank, or the exception that it raises there."""
    exchange = _Exchange(size)

    def run(rank: int) -> Any:
        try:
            return body(ThreadWorld(rank, size, torch.device("cpu"), exchange))
        except Exception as error:
            return error

    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(run, range(size)))

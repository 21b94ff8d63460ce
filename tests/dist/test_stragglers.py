"""A rank that is late, wherever on its host: all ranks name it, and training goes on."""

import logging
import time

import pytest
import torch
from ranks import on_ranks

from pretrain.distributed.stragglers import LEAST_S, Stragglers
from pretrain.distributed.world import World

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # s; processes that wait, on few cores

LATE_S = 0.1  # in each step, which takes a tenth of that
PLACES = ["data", "forward", "backward", "optimizer", "nowhere"]


class Late(torch.autograd.Function):
    """The identity, whose gradient comes late."""

    @staticmethod
    def forward(ctx, value):
        return value

    @staticmethod
    def backward(ctx, gradient):
        time.sleep(LATE_S)
        return gradient


def steps_with_a_late_rank(world: World, late: int) -> None:
    """Take steps as the loop does, with rank `late` asleep in one place of each."""
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("pretrain").addHandler(handler)
    layers = torch.nn.Sequential(*[torch.nn.Linear(200, 200) for _ in range(4)])
    model = torch.nn.parallel.DistributedDataParallel(layers, bucket_cap_mb=0.2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for place in PLACES:
        stragglers = Stragglers(world, 2.0)

        def here(now: str, place: str = place) -> bool:
            return place == now and world.rank == late

        with stragglers.measured() as measured:
            for _ in range(int(1.5 * LEAST_S / LATE_S)):
                time.sleep(LATE_S if here("data") else LATE_S / 10)
                measured.sum_ints(1)
                values = torch.ones(8, 200)
                if here("forward"):
                    time.sleep(LATE_S)
                hidden = model(values)
                (Late.apply(hidden) if here("backward") else hidden).sum().backward()
                if here("optimizer"):
                    time.sleep(LATE_S)
                optimizer.step()
                optimizer.zero_grad()
                stragglers.end_step()
                if place == "nowhere":
                    time.sleep(LATE_S / 2)
            stragglers.compare()
        assert len(said) == (place != "nowhere"), (place, said)
        for text in said:
            assert text.startswith(f"rank {late} on host "), (place, text)
        said.clear()


def test_a_rank_that_is_late_anywhere_in_a_step_is_named():
    on_ranks(3, steps_with_a_late_rank, 1)

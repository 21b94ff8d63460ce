"""Collectives over real gloo ranks."""

import torch
from ranks import on_ranks


def check_collectives(world):
    assert world.sum_ints(world.rank, 1, 2**40) == [3, 3, 3 * 2**40]
    assert world.sum_tensor(torch.tensor(0.5 + world.rank, dtype=torch.float64)).item() == 4.5
    messages = world.gather({"rank": world.rank, "text": "ä" * (world.rank * 1000)})
    assert [message["rank"] for message in messages] == [0, 1, 2]
    assert messages[2]["text"] == "ä" * 2000
    world.barrier()


def test_sums_and_messages_over_three_ranks():
    on_ranks(3, check_collectives)

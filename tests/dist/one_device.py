"""What strategies must keep on one device, where the host runs ahead of it; tests/gpu asks it of CUDA devices.

`tests/dist/test_one_device.py` asks it of the CPU, so that the laws themselves are known to hold there.
"""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from equivalence import SEQUENCES, Course, save, start, stored, strategies, train

from pretrain.checkpoint.save import CheckpointConfig, Checkpoints
from pretrain.distributed.world import World
from pretrain.strategy.precision import FP16, Precision

SHORT = 6  # steps
MICRO = SEQUENCES // 3
OFFLOADED = {"zero2+offload": "zero2", "zero3+offload": "zero3"}
SAVED = ("ddp", "zero2", "zero2+offload", "zero3", "fsdp2")


def check_takes_the_steps_of_plain_torch(world: World, name: str, expected: Course) -> None:
    """Losses and norms in fp32; sums in another order may differ by rounding alone."""
    _, wrapped, strategy = start(world, strategies(1)[name])
    course = train(world, wrapped, strategy, range(SHORT), MICRO)
    assert course.losses == pytest.approx(expected.losses, rel=1e-4)
    assert course.norms == pytest.approx(expected.norms, rel=1e-3)


def check_offloads_without_a_change(world: World, folder: Path, name: str, precision: Precision) -> None:
    """Weights and moments after steps with the optimizer's state on the host are those with it on the device.

    Apart from rounding, which in bf16 grows: a weight that is rounded the other way computes another gradient.
    """
    allowed = 1e-3 if precision.dtype == torch.float32 else 2e-2
    weights = []
    for each in (name, OFFLOADED[name]):
        _, wrapped, strategy = start(world, strategies(1)[each], precision)
        train(world, wrapped, strategy, range(SHORT), MICRO)
        weights.append(stored(save(world, strategy, folder / each, SHORT)))
    offloaded, plain = weights
    assert offloaded.keys() == plain.keys()
    for key, value in plain.items():
        assert (offloaded[key] - value).norm() <= allowed * value.norm(), key


def check_saves_the_values_of_the_call(
    world: World, folder: Path, name: str, ahead: Callable[[], None] = lambda: None
) -> None:
    """Steps that are taken while an asynchronous save is under way are not in it; `ahead` keeps the device busy."""
    _, wrapped, strategy = start(world, strategies(1)[name])
    checkpoints = Checkpoints(folder / "asynchronous", CheckpointConfig(asynchronous=True), world)
    for step in (2, 3):  # the second time into the same host memory
        train(world, wrapped, strategy, range(step - 1, step), MICRO)
        expected = stored(save(world, strategy, folder / "waited for", step))
        ahead()
        trained = threading.Event()
        checkpoints._background.submit(trained.wait, 60)  # until then nothing is written
        checkpoints.save(step, strategy, {})
        train(world, wrapped, strategy, range(9, 10), MICRO)
        trained.set()
        checkpoints.settle(wait=True)
        found = stored(folder / "asynchronous" / f"step-{step:08d}")
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)
    checkpoints.close()


def check_skips_what_overflows(world: World, folder: Path, name: str) -> None:
    """In fp16, a step whose gradient overflows changes nothing and halves the scale, until gradients are finite."""
    power = 60
    _, wrapped, strategy = start(world, strategies(1)[name], FP16(initial_scale=2.0**power))
    before = stored(save(world, strategy, folder, 1))
    skipped = 0
    while not torch.tensor(train(world, wrapped, strategy, range(1), MICRO).norms[0]).isfinite():
        skipped += 1
        assert skipped < 90, "below 2^-30 nothing overflows"
        if skipped == 3:
            after = stored(save(world, strategy, folder, 2))
            assert all(torch.equal(value, before.get(key, torch.zeros_like(value))) for key, value in after.items())
    assert skipped > 3 and strategy.state()["scale"] == 2.0 ** (power - skipped)
    moved = stored(save(world, strategy, folder, 3))
    assert not torch.equal(before["weight model.embedding.weight"], moved["weight model.embedding.weight"])

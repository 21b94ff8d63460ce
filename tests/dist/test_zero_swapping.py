"""Shards on NVMe: the steps and the checkpoints of a run are those of one whose shards stay in memory."""

import pytest
import torch
from equivalence import SEQUENCES, VOCABULARY, pack, save, sequences, start, stored, train
from ranks import on_ranks
from storages import storages

from pretrain.checkpoint.load import restore, shapes_of
from pretrain.models.attention.sdpa import sdpa
from pretrain.models.decoder import DecoderConfig
from pretrain.objectives.causal_lm import CausalLMConfig
from pretrain.strategy.ddp import DDPConfig
from pretrain.strategy.precision import BF16, FP32
from pretrain.strategy.zero import Offload, ZeROConfig

# Where async_io is not compiled yet, compiling it takes minutes.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # s

STEPS, SAVED_AFTER = 6, 3


@pytest.fixture(autouse=True)
def needs_async_io():
    from deepspeed.ops.op_builder import AsyncIOBuilder

    if not AsyncIOBuilder().is_compatible():
        pytest.skip("DeepSpeed's async_io cannot be compiled here: there is no libaio (install libaio-dev)")


def wide():
    """8.7 million parameters: DeepSpeed keeps tensors below 1 MiB in memory, and halves of matrices exceed that."""
    with torch.device("meta"):
        config = DecoderConfig(max_seq_len=13, width=512, layers=2, heads=4, mlp_width=2112)
        return CausalLMConfig().build(config.build(vocab_size=VOCABULARY, attend=sdpa))


def swapping(folder, **fields):
    small = {"sub_group": 300_000, "reduce_bucket": 100_000, "gather_bucket": 70_000, "persistent_below": 600}
    return ZeROConfig(stage=3, nvme_path=str(folder / "nvme"), **(small | fields))


def swapped(folder):
    """Return every way to keep shards on NVMe, by a name to report."""
    nvme = Offload.nvme
    return {
        "optimizer": swapping(folder, offload_optimizer=nvme, nvme_threads=2),
        "optimizer, parameters in memory": swapping(folder, offload_optimizer=nvme, offload_parameters=Offload.cpu),
        "parameters": swapping(folder, offload_parameters=nvme),
        "both": swapping(folder, offload_optimizer=nvme, offload_parameters=nvme),
    }


def evaluate(wrapped, step):
    """Run the model forward alone, as an evaluation between steps does."""
    wrapped.eval()
    with torch.no_grad():
        total = wrapped(pack(sequences(step))).total.item()
    wrapped.train()
    return total


def assert_equal(one, other, label):
    assert one.keys() == other.keys(), label
    assert [key for key in one if not torch.equal(one[key], other[key])] == [], label


def assert_swapped(cfg, strategy, label):
    """What is offloaded is out of memory between steps."""
    zero = strategy.zero
    if cfg.offload_optimizer is Offload.nvme:
        out = [shard for shard in zero.fp32_partitioned_groups_flat if shard.numel() == 0]
        assert len(out) > 1, f"{label}: several sub-groups"
        assert all(
            moment.numel() == 0 for shard in out for moment in strategy.optimizer.state[shard].values() if moment.shape
        ), label
    if cfg.offload_parameters is Offload.nvme:
        sizes = [parameter.ds_tensor.numel() for parameter in strategy.module.parameters()]
        assert sizes.count(1) >= 4, f"{label}: a matrix that is out leaves one element"


def check_course(world, folder, precision, tolerance):
    _, wrapped, strategy = start(world, DDPConfig(), precision, wide)
    expected = train(world, wrapped, strategy, range(STEPS), 3)
    last = evaluate(wrapped, STEPS)
    for name, cfg in swapped(folder).items():
        _, wrapped, strategy = start(world, cfg, precision, wide)
        first = train(world, wrapped, strategy, range(SAVED_AFTER), 3)
        assert_swapped(cfg, strategy, name)
        step = save(world, strategy, folder / name, SAVED_AFTER)
        evaluate(wrapped, SAVED_AFTER)
        then = train(world, wrapped, strategy, range(SAVED_AFTER, STEPS), 3)
        assert first.losses + then.losses == pytest.approx(expected.losses, abs=tolerance), name
        assert evaluate(wrapped, STEPS) == pytest.approx(last, rel=tolerance), name
        straight = stored(save(world, strategy, folder / name, STEPS))
        _, wrapped, strategy = start(world, cfg, precision, wide)
        restore(step, shapes_of(wide()), strategy)
        assert train(world, wrapped, strategy, range(SAVED_AFTER, STEPS), 3) == then, f"{name}: not bit for bit"
        assert_equal(straight, stored(save(world, strategy, folder / f"{name} resumed", STEPS)), name)


@pytest.mark.parametrize(("precision", "tolerance"), [(FP32(), 1e-5), (BF16(), 0.05)])
def test_steps_are_those_of_ddp_and_a_resumed_run_equals_one_never_interrupted(tmp_path, precision, tolerance):
    on_ranks(2, check_course, tmp_path, precision, tolerance)


def write(world, folder, name):
    _, wrapped, strategy = start(world, ({"ddp": DDPConfig()} | swapped(folder))[name], make=wide)
    train(world, wrapped, strategy, range(SAVED_AFTER), 1)
    save(world, strategy, folder / name, SAVED_AFTER)
    train(world, wrapped, strategy, range(SAVED_AFTER, STEPS), 1)
    save(world, strategy, folder / name, STEPS)


def move(world, folder, one, other):
    step = folder / one / f"step-{SAVED_AFTER:08d}"
    _, wrapped, strategy = start(world, ({"ddp": DDPConfig()} | swapped(folder))[other], make=wide)
    restore(step, shapes_of(wide()), strategy)
    moved = save(world, strategy, folder / f"{one} to {other}", SAVED_AFTER)
    assert_equal(stored(step), stored(moved), f"{one} to {other}")
    train(world, wrapped, strategy, range(SAVED_AFTER, STEPS), 1)
    carried_on = stored(save(world, strategy, folder / f"{one} to {other}", STEPS))
    for key, value in stored(folder / one / f"step-{STEPS:08d}").items():
        torch.testing.assert_close(carried_on[key], value, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["optimizer", "both"])
def test_checkpoints_move_between_two_ranks_with_nvme_and_one_without(tmp_path, name):
    on_ranks(2, write, tmp_path, name)
    on_ranks(1, move, tmp_path, name, "ddp")
    on_ranks(1, write, tmp_path, "ddp")
    on_ranks(2, move, tmp_path, "ddp", name)


def check_skip(world, folder):
    for name, cfg in swapped(folder).items():
        _, wrapped, strategy = start(world, cfg, make=wide)
        train(world, wrapped, strategy, range(2), 2)
        before = stored(save(world, strategy, folder / name, 2))
        [norm] = train(world, wrapped, strategy, range(2, 3), 2, factor=float("nan")).norms
        assert norm != norm or norm == float("inf"), name
        assert_equal(before, stored(save(world, strategy, folder / name, 3)), name)
        train(world, wrapped, strategy, range(2, 3), 2)
        again = stored(save(world, strategy, folder / name, 4))
        assert not torch.equal(before["weight model.embedding.weight"], again["weight model.embedding.weight"]), name


def test_a_step_with_a_broken_gradient_changes_nothing(tmp_path):
    on_ranks(2, check_skip, tmp_path)


def check_memory(world, folder, precision):
    """Counted apart: the five buffers that parameters are read into, and parameters that are too small to go out."""
    parameters = sum(parameter.numel() for parameter in wide().parameters())
    largest = max(parameter.numel() for parameter in wide().parameters())
    for name, cfg in swapped(folder).items():
        before = storages()
        module, wrapped, strategy = start(world, cfg, precision, wide)
        train(world, wrapped, strategy, range(1), SEQUENCES // world.size)
        held = []
        take_step = strategy.step

        def measured(*options, take_step=take_step, before=before, held=held):
            held.append(sum(size for at, size in storages().items() if before.get(at) != size))
            return take_step(*options)

        strategy.step = measured
        cfg.sub_group = max(strategy.zero.fp16_partitioned_groups_flat_numel)  # it ends with a whole parameter
        train(world, wrapped, strategy, range(1, 2), SEQUENCES // world.size)
        predicted = sum(cfg.memory(parameters, ranks=world.size, precision=precision))
        if cfg.offload_parameters is Offload.nvme:
            shards = [parameter.ds_tensor for parameter in module.parameters()]
            predicted += sum(shard.nbytes for shard in shards if shard.numel() > 1)
            predicted += 5 * precision.dtype.itemsize * largest / world.size
        assert held == [pytest.approx(predicted, rel=0.05)], (name, held[0] / parameters, predicted / parameters)


@pytest.mark.parametrize("precision", [FP32(), BF16()])
def test_a_rank_holds_what_its_strategy_predicts(tmp_path, precision):
    on_ranks(2, check_memory, tmp_path, precision)

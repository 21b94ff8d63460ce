"""The configuration of FSDP2: what is refused, and what a rank holds. Its steps are tested over real ranks."""

import pytest

from pretrain.errors import ConfigError
from pretrain.strategy.base import ReduceDtype
from pretrain.strategy.fsdp2 import FSDP2Config
from pretrain.strategy.precision import BF16


@pytest.mark.parametrize(("shard_ranks", "ranks", "held"), [(None, 4, 300), (2, 4, 600), (1, 4, 1200), (4, 12, 300)])
def test_a_rank_holds_its_part_of_one_replica(shard_ranks, ranks, held):
    cfg = FSDP2Config(shard_ranks=shard_ranks)
    cfg.check_machine(ranks=ranks, device_type="cpu", precision=BF16())
    assert cfg.memory(1200, ranks=ranks, precision=BF16()) == (4 * held, 4 * held, 8 * held)


@pytest.mark.parametrize(
    ("more", "memory"),
    [
        ({"reshard_after_forward": False}, (4 * 300 + 2 * 1200, 4 * 300, 8 * 300)),
        ({"accumulate_whole_gradients": True}, (4 * 300, 4 * 1200, 8 * 300)),
        ({"accumulate_whole_gradients": True, "reduce_dtype": ReduceDtype.bf16}, (4 * 300, 2 * 1200, 8 * 300)),
    ],
)
def test_what_stays_whole_between_micro_batches_is_counted(more, memory):
    assert FSDP2Config(**more).memory(1200, ranks=4, precision=BF16()) == memory


@pytest.mark.parametrize(("shard_ranks", "ranks"), [(3, 4), (8, 4)])
def test_ranks_that_do_not_fall_into_whole_replicas_are_refused(shard_ranks, ranks):
    with pytest.raises(ConfigError, match=rf"strategy\.shard_ranks={shard_ranks}: must divide .* {ranks}"):
        FSDP2Config(shard_ranks=shard_ranks).check_machine(ranks=ranks, device_type="cpu", precision=BF16())


def test_no_ranks_hold_nothing():
    with pytest.raises(ConfigError, match=r"strategy\.shard_ranks=0: at least 1"):
        FSDP2Config(shard_ranks=0)

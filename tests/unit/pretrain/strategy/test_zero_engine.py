"""Parts of parameters in the shards of DeepSpeed, whose objects are stand-ins: over all ranks each element once."""

import logging
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from toys import ToyModel

from pretrain.objectives.causal_lm import CausalLMConfig
from pretrain.optim.adamw import AdamWConfig
from pretrain.optim.muon import MuonConfig
from pretrain.strategy.zero_engine import _trusted, slice_of_flat_group, slice_of_frozen, slice_of_parameter


@pytest.mark.parametrize(("optim", "warns"), [(MuonConfig(), False), (AdamWConfig(), True)])
def test_an_optimizer_that_knows_of_its_shards_is_no_untested_one(optim, warns, caplog):
    logger = logging.getLogger("headwater_tests.deepspeed")
    with _trusted(logger, optim.build(CausalLMConfig().build(ToyModel()))):
        logger.warning("**** You are using ZeRO with an untested optimizer, proceed with caution *****")
        logger.warning("another one")
    assert len(caplog.messages) == 1 + warns and not logger.filters


@pytest.mark.parametrize("numel", [1, 2, 5, 6, 7, 12])
@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_parts_under_stage_3_are_a_parameter_without_its_padding(numel, ranks):
    whole = torch.arange(float(numel))
    padded = -(-numel // ranks)
    found, frozen = [], []
    for rank in range(ranks):
        own = torch.full((padded,), -1.0)
        own[: max(0, min(padded, numel - rank * padded))] = whole[rank * padded : (rank + 1) * padded]
        shard = torch.cat([torch.full((4,), -2.0), own, torch.full((3,), -3.0)])  # other parameters lie around it
        zero = SimpleNamespace(
            get_param_id=lambda parameter: "it",
            grad_position={"it": (1, 4, padded)},
            fp32_partitioned_groups_flat=[0, shard],
        )
        parameter = SimpleNamespace(ds_numel=numel, ds_tensor=own)
        for part, into in (
            (slice_of_parameter(zero, parameter, rank), found),
            (slice_of_frozen(parameter, rank), frozen),
        ):
            if part:
                assert part.start == sum(map(len, into)), "parts follow each other"
                into.append(part.of(part.shard))
    assert torch.equal(torch.cat(found), whole) and torch.equal(torch.cat(frozen), whole)


def test_a_part_of_a_flat_group_begins_at_one_place_of_the_parameter_and_at_another_of_the_shard():
    shards = [torch.arange(20.0), torch.arange(100.0, 120.0)]
    optimizer = SimpleNamespace(param_groups=[{"params": [shard]} for shard in shards])
    parameter = nn.Parameter(torch.zeros(9))
    assert slice_of_flat_group(optimizer, parameter) is None
    address = lambda start, numel: SimpleNamespace(start=start, numel=numel)
    parameter._hp_mapping = SimpleNamespace(
        param_group_index=1, lp_fragment_address=address(2, 5), hp_fragment_address=address(13, 5)
    )
    part = slice_of_flat_group(optimizer, parameter)
    assert (part.start, part.numel, part.group) == (2, 5, 1)
    assert part.of(part.shard).tolist() == [113, 114, 115, 116, 117]

"""Every strategy begins with weights alone, on another number of ranks than they were saved by."""

import pytest
import torch
from equivalence import SHAPES, save, start, stored, strategies, train
from ranks import on_ranks

from pretrain.checkpoint.fragments import FragmentReader
from pretrain.checkpoint.load import load_manifest
from pretrain.init_from import SourceWeights

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # s; many processes on few cores


def write_source(world, folder):
    _, wrapped, strategy = start(world, strategies(world.size)["ddp"])
    train(world, wrapped, strategy, range(2), 1)
    save(world, strategy, folder / "source", 2)


def read_weights(world, folder):
    step = folder / "source" / "step-00000002"
    source = stored(step)
    for name, cfg in strategies(world.size).items():
        _, _, strategy = start(world, cfg)
        reader = FragmentReader(step, load_manifest(step)["tensors"])
        strategy.load_fragments(SourceWeights(reader, reader.weight_shapes(), reader))
        begun = stored(save(world, strategy, folder / name, 0))
        for tensor in SHAPES:
            assert torch.equal(begun[f"weight {tensor}"], source[f"weight {tensor}"]), (name, tensor)
        moments = {key for key in begun if not key.startswith("weight ")}
        assert not [key for key in moments if begun[key].any()], name


def test_every_strategy_begins_with_weights_alone_on_another_number_of_ranks(tmp_path):
    on_ranks(2, write_source, tmp_path)
    on_ranks(3, read_weights, tmp_path)

"""Under muP every strategy takes the steps of plain torch, whose groups are made here by the names of parameters."""

import pytest
import torch
from equivalence import OPTIM, SEQUENCES, VOCABULARY, reference, save, start, stored, strategies, train
from ranks import on_ranks
from torch import nn
from toys import ALONE

from pretrain.checkpoint.load import restore, shapes_of
from pretrain.models.attention.sdpa import sdpa
from pretrain.models.decoder import DecoderConfig
from pretrain.objectives.causal_lm import CausalLMConfig
from pretrain.optim.adamw import AdamWConfig, FusedAdamW
from pretrain.optim.base import parameter_group

STEPS = 3


def build_scaled():
    """Return a module on the meta device, 2.5 times as wide as its base, with more and wider heads."""
    base = {"mup_base_width": 8, "mup_base_head_width": 4}
    config = DecoderConfig(max_seq_len=13, width=20, layers=3, heads=4, kv_heads=2, mlp_width=47, **base)
    with torch.device("meta"):
        return CausalLMConfig().build(config.build(vocab_size=VOCABULARY, attend=sdpa))


class ByName(AdamWConfig):
    """AdamW with a group for each parameter."""

    def build(self, module: nn.Module) -> FusedAdamW:
        groups = []
        for name, parameter in module.named_parameters():
            slower = 2.5 if ".blocks." in name and parameter.ndim == 2 else 1.0
            decay = self.weight_decay * slower if parameter.ndim == 2 else 0.0
            groups.append(parameter_group(name, [parameter], self.lr / slower, decay))
        return FusedAdamW(groups, self.beta1, self.beta2, self.eps)


def check_steps(world, folder, names, expected, weights):
    for name in names:
        _, wrapped, strategy = start(world, strategies(world.size)[name], make=build_scaled)
        course = train(world, wrapped, strategy, range(1), SEQUENCES // world.size // 3)
        step = save(world, strategy, folder / name, 1)
        _, wrapped, strategy = start(world, strategies(world.size)[name], make=build_scaled)
        restore(step, shapes_of(build_scaled()), strategy)
        later = train(world, wrapped, strategy, range(1, STEPS), SEQUENCES // world.size // 3)
        assert course.losses + later.losses == pytest.approx(expected.losses, abs=1e-5), name
        assert course.norms + later.norms == pytest.approx(expected.norms, rel=1e-4), name
        tensors = stored(save(world, strategy, folder / name, STEPS))
        for own, value in weights.items():
            torch.testing.assert_close(tensors[f"weight {own}"], value, rtol=0, atol=1e-5)


def by_name():
    return reference(STEPS, build_scaled, optim=ByName(lr=OPTIM.lr))


def test_one_process_takes_the_steps_of_groups_made_by_name_and_resumes(tmp_path):
    check_steps(ALONE, tmp_path, ["ddp"], *by_name())


@pytest.mark.slow
@pytest.mark.timeout(600)  # s; many processes on few cores, and others may use them too
def test_every_strategy_takes_the_steps_of_groups_made_by_name_and_resumes(tmp_path):
    names = ["ddp", "zero1", "zero2", "zero3", "fsdp2", "hsdp"]
    on_ranks(2, check_steps, tmp_path, names, *by_name())

"""muP: nothing changes at the base width, factors are those of the paper, and wider models learn as narrow ones do."""

import math

import pytest
import torch
from small_models import LLAMA, QWEN3, ragged_batch, small_decoder
from torch import nn

from pretrain.models.base import Layout
from pretrain.models.decoder import DecoderConfig
from pretrain.models.init import Init
from pretrain.models.layers import Positions
from pretrain.objectives.causal_lm import CausalLMConfig
from pretrain.optim.adamw import AdamWConfig
from pretrain.optim.base import OptimConfig
from pretrain.optim.muon import AdjustLr, MuonConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mup_base_width": 0}, "model.mup_base_width=0: must be at least 1"),
        ({"mup_base_head_width": 8}, "model.mup_base_head_width=8: means something only beside model.mup_base_width"),
        ({"mup_base_width": 24, "mup_base_head_width": 8}, "model.mup_base_head_width=8: must be 6, or null, where"),
        ({"mup_base_width": 12, "embedding_scale": True}, "model.embedding_scale=true: .* set false"),
        ({"mup_base_width": 12, "positions": Positions.sinusoidal}, "model.positions=sinusoidal: .* learned or rotary"),
    ],
)
def test_refuses_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        DecoderConfig(max_seq_len=32, width=24, heads=4, **fields)


def hidden(model, lengths=(23, 9, 30)):
    batch = ragged_batch(list(lengths))
    return model(batch.tokens, batch.positions, Layout.of(batch.offsets, batch.max_len))


def learn(model, optim: OptimConfig, steps: int) -> None:
    """Take steps on the same documents."""
    module = CausalLMConfig().build(model)
    optimizer, batch = optim.build(module), ragged_batch([23, 9, 30])
    for _ in range(steps):
        (module(batch).total / batch.num_targets).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("optim", [AdamWConfig(lr=0.01), MuonConfig(lr=0.01)])
@pytest.mark.parametrize("own", [{}, {"mup_base_head_width": 6}])
def test_at_the_base_width_everything_is_bit_for_bit_as_without(optim, own):
    plain, scaled = small_decoder(), small_decoder(mup_base_width=24, **own)
    for model in (plain, scaled):
        learn(model, optim, steps=2)
    assert scaled.config.plain() == plain.config.plain()
    for (name, one), other in zip(plain.named_parameters(), scaled.parameters(), strict=True):
        assert torch.equal(one, other), name
    assert torch.equal(hidden(plain), hidden(scaled))


def test_the_forward_pass_and_the_first_weights_have_the_factors_of_the_paper():
    """Three times as wide, heads twice as wide; 1/E in place of 1/sqrt(E) means sqrt(E_base)/E here."""
    wide = {"width": 144, "heads": 6, "init": Init.gpt2, "tie_embeddings": False}
    plain, scaled = small_decoder(**wide), small_decoder(**wide, mup_base_width=48, mup_base_head_width=12)
    drawn = dict(plain.named_parameters())
    for name, parameter in scaled.named_parameters():
        inner = name.startswith("blocks.") and parameter.ndim == 2
        torch.testing.assert_close(parameter, drawn[name] * (math.sqrt(1 / 3) if inner else 1.0))
    assert [block.attention.scale for block in scaled.blocks] == pytest.approx([math.sqrt(12) / 24] * 2)
    scaled.load_state_dict(plain.state_dict())
    for block in plain.blocks:
        block.attention.scale = math.sqrt(12) / 24
    torch.testing.assert_close(hidden(scaled), hidden(plain) / 3)


def test_the_width_of_scores_is_scaled_too():
    model = small_decoder(mup_base_width=12, mup_base_head_width=3, score_width=10)
    assert model.blocks[0].attention.scale == pytest.approx(10**-0.5 * math.sqrt(3 / 6))


WIDTHS, STEPS = (64, 128, 256, 512), 4


def moved(width: int, optim: OptimConfig, seed: int, **fields: object) -> list[float]:
    """Return by how much learning moves what each block returns, and the logits: root mean squares."""
    model = small_decoder(seed=seed, width=width, **fields)
    seen: list[torch.Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    before = look(model, seen)
    learn(model, optim, STEPS)
    after = look(model, seen)
    return [(one - other).square().mean().sqrt().item() for one, other in zip(before, after, strict=True)]


@torch.no_grad()
def look(model, seen: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return the logits and what each block returns, which hooks put into `seen`."""
    seen.clear()
    return [nn.functional.linear(hidden(model), model.head_weight()), *seen]


def slopes(optim: OptimConfig, seeds: tuple[int, ...] = (1,), **fields: object) -> list[float]:
    """Return how these grow with the width, of the logits first: the exponent of a power that fits best."""
    widths = torch.tensor(WIDTHS, dtype=torch.float64).log()
    rows = [[moved(width, optim, seed, **fields) for width in WIDTHS] for seed in seeds]
    sizes = torch.tensor(rows, dtype=torch.float64).log().mean(0)
    centred = widths - widths.mean()
    return (centred @ sizes / centred.square().sum()).tolist()


MUP = {"mup_base_width": 64, "mup_base_head_width": 16}  # as many heads at every width


def test_wider_models_learn_as_much_per_step():
    """The coordinate check of Yang et al. 2022, appendix D.1, at one seed."""
    optim = AdamWConfig(lr=5e-3)
    assert all(abs(slope) < 0.1 for slope in slopes(optim, **QWEN3, **MUP))
    assert all(slope > 0.5 for slope in slopes(optim, **QWEN3)), "and do not without"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optim", "seeds", "fields"),
    [
        (AdamWConfig(lr=5e-3), (1, 2, 3), {}),  # of GPT-2, tied
        (AdamWConfig(lr=5e-3), (1, 2, 3), {**LLAMA, "kv_heads": 2, "tie_embeddings": False}),
        (MuonConfig(lr=5e-3), (1,), {}),
        (MuonConfig(lr=1.5e-2, adjust_lr=AdjustLr.original, adamw_lr=5e-3), (1,), {}),
    ],
)
def test_wider_models_of_all_kinds_learn_as_much_per_step(optim, seeds, fields):
    for own in (MUP, {"mup_base_width": 64}):  # heads that widen, and not
        assert all(abs(slope) < 0.1 for slope in slopes(optim, seeds, **fields, **own)), own
    assert all(slope > 0.3 for slope in slopes(optim, **fields)), "and do not without"

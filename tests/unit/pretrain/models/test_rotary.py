"""Scaled rotary frequencies equal those of transformers; part of a head is rotated and the rest stays."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from pretrain.errors import ConfigError
from pretrain.models.rotary import RopeScaling, Scaling, frequencies, rotary, rotate

LENGTH = 64  # tokens of the texts before
LLAMA3 = {"kind": Scaling.llama3, "original_length": LENGTH}
YARN = {"kind": Scaling.yarn, "original_length": LENGTH, "factor": 2.0}
SCALINGS = [  # ours, and what transformers is told beside kind, base and factor
    (RopeScaling(kind=Scaling.linear, factor=3.0), {}),
    (RopeScaling(**LLAMA3, factor=8.0), {"low_freq_factor": 1, "high_freq_factor": 4}),
    (
        RopeScaling(**LLAMA3, factor=2.5, slow_turns=0.5, fast_turns=3.0),
        {"low_freq_factor": 0.5, "high_freq_factor": 3.0},
    ),
    (RopeScaling(**YARN), {}),
    (
        RopeScaling(**YARN, slow_turns=2.0, fast_turns=9.0, truncate=False),
        {"beta_slow": 2.0, "beta_fast": 9.0, "truncate": False},
    ),
    (RopeScaling(**YARN, attention_factor=1.7), {"attention_factor": 1.7}),
    (RopeScaling(**YARN | {"original_length": 10**6}), {"original_max_position_embeddings": 10**6}),
]


@pytest.mark.parametrize("theta", [50.0, 500_000.0])
@pytest.mark.parametrize(("scaling", "theirs"), SCALINGS)
def test_scaled_frequencies_equal_those_of_transformers(scaling, theirs, theta):
    rope = {"rope_type": scaling.kind.value, "rope_theta": theta, "factor": scaling.factor, **theirs}
    rope = {"original_max_position_embeddings": LENGTH, **rope}
    config = LlamaConfig(hidden_size=48, num_attention_heads=2, max_position_embeddings=512, rope_parameters=rope)
    expected, magnitude = ROPE_INIT_FUNCTIONS[scaling.kind.value](config, torch.device("cpu"))
    found = scaling.apply(frequencies(24, theta, torch.device("cpu")), theta)
    torch.testing.assert_close(found, expected, atol=0, rtol=1e-6)
    positions = torch.tensor([0, 3, 300])
    cos, sin = rotary(positions, 24, theta, scaling)
    angles = positions[:, None].double() * found.double()
    torch.testing.assert_close(cos[:, 0].double(), angles.cos() * magnitude, atol=3e-5, rtol=0)
    torch.testing.assert_close(sin[:, 0].double(), angles.sin() * magnitude, atol=3e-5, rtol=0)


def test_coordinates_beyond_the_rotated_ones_stay():
    x = torch.randn(3, 2, 10)
    tables = rotary(torch.tensor([0, 1, 7]), 4, 100.0)
    turned = rotate(x, tables)
    assert torch.equal(turned[..., 4:], x[..., 4:])
    assert torch.equal(turned[..., :4], rotate(x[..., :4], tables))
    assert not torch.equal(turned[1:, :, :4], x[1:, :, :4])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": Scaling.yarn, "factor": 2.0}, "model.rope_scaling.kind=yarn: needs the tokens of the texts before"),
        ({"kind": Scaling.linear, "factor": 0.5}, "model.rope_scaling.factor=0.5: must be at least 1"),
        ({"factor": float("inf")}, "model.rope_scaling.factor=inf"),
        ({"factor": 2.0}, "model.rope_scaling.factor=2.0: scales nothing with model.rope_scaling.kind=none"),
        (
            {"kind": Scaling.llama3, "factor": 2.0, "original_length": 9, "slow_turns": 4.0},
            "model.rope_scaling.fast_turns=null: must be above model.rope_scaling.slow_turns=4.0",
        ),
        ({"attention_factor": 0.0}, "model.rope_scaling.attention_factor=0.0"),
    ],
)
def test_refuses_by_name(fields, message):
    with pytest.raises(ConfigError, match=message):
        RopeScaling(**fields)

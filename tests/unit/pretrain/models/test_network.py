"""The same network in fewer settings: what is left out changes nothing of what it computes."""

import pytest
import torch
from small_models import BART, LLAMA, MODERNBERT, T5_TIED, ragged_batch, small_decoder, small_encoder

from pretrain.models.base import Layout
from pretrain.models.encoder_decoder import EncoderDecoderConfig
from pretrain.models.layers import Positions
from pretrain.models.rotary import RopeScaling, Scaling

LINEAR = RopeScaling(kind=Scaling.linear, factor=4.0)
YARN = RopeScaling(kind=Scaling.yarn, factor=1.0, original_length=9)
SAME = [  # a model, settings that add nothing to it, and those that it has
    (small_decoder, {"kv_heads": 4, "attention_width": 24, "mlp_width": 96, "qkv_bias": True, "score_width": 6}, {}),
    (small_decoder, {"rope_theta": 5.0, "local_rope_theta": 6.0, "rope_scaling": RopeScaling(slow_turns=3.0)}, {}),
    (small_decoder, {"embedding_scale": True}, {"positions": Positions.sinusoidal}),
    (small_decoder, {"local_rope_theta": 1e4, "global_every": 5, "global_first": 3}, {**LLAMA, "window": 3}),
    (small_decoder, {"window": 3, "global_every": 1, "local_rope_theta": 7.0}, {**LLAMA, "kv_heads": 2}),
    (
        small_decoder,
        {"rope_scaling": RopeScaling(kind=Scaling.linear, factor=4.0, original_length=9, fast_turns=7.0)},
        {**LLAMA, "rope_scaling": LINEAR},
    ),
    (
        small_decoder,
        {"rope_scaling": RopeScaling(**vars(YARN) | {"fast_turns": 32.0, "attention_factor": 1.0})},
        {**LLAMA, "rope_scaling": YARN},
    ),
    (small_encoder, {"rope_theta": 5.0, "local_rope_theta": None}, {}),
    (small_encoder, {"local_rope_theta": 160_000.0}, {**MODERNBERT, "window": 2, "local_rope_theta": None}),
]


@pytest.mark.parametrize(("build", "nothing", "own"), SAME)
def test_what_is_left_out_changes_nothing(build, nothing, own):
    whole, short = build(**own | nothing), build(**own)
    assert whole.config != short.config == short.config.plain() == whole.config.plain()
    batch = ragged_batch([5, 1, 9])
    layout = Layout.of(batch.offsets, batch.max_len)
    assert torch.equal(*(model(batch.tokens, batch.positions, layout) for model in (whole, short)))


@pytest.mark.parametrize(
    ("build", "own"),
    [
        (small_decoder, {**LLAMA, "rope_scaling": LINEAR, "window": 3, "local_rope_theta": 1e4}),  # never scaled
        (small_decoder, {**LLAMA, "window": 3, "global_every": 2, "global_first": 1}),
        (small_decoder, {"kv_heads": 2, "attention_width": 48, "qkv_bias": False, "score_width": 7}),
        (small_encoder, {**MODERNBERT, "window": 2, "rope_theta": 7.0}),
    ],
)
def test_what_changes_something_stays(build, own):
    assert build(**own).config.plain() == build(**own).config


def test_an_encoder_decoder_in_fewer_settings():
    size = {"max_seq_len": 32, "layers": 2}
    for own, nothing in (
        (BART, {"decoder_layers": 2, "attention_width": 512, "buckets": 8, "max_distance": 9, "mlp_width": 2048}),
        (T5_TIED | {"buckets": 8}, {"decoder_layers": 2, "rope_theta": 3.0}),
    ):
        assert EncoderDecoderConfig(**size, **own, **nothing).plain() == EncoderDecoderConfig(**size, **own)

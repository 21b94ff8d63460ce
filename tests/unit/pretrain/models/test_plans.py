"""Models have backends plan exactly what their layers then ask of them."""

import pytest
from small_models import DEBERTA, MODERNBERT, T5, ragged_batch, ragged_pairs, small_model

from pretrain.models.attention.sdpa import sdpa
from pretrain.models.base import Asked, Layout, Planner
from pretrain.models.decoder import DecoderConfig
from pretrain.models.encoder import EncoderConfig
from pretrain.models.encoder_decoder import EncoderDecoderConfig


class Recorder(Planner):
    def __init__(self):
        self.planned, self.asked = [], []

    def plan(self, layout, asked):
        self.planned.append((id(layout), asked))

    def __call__(self, q, k, v, layout, **options):
        bias = options.get("bias")
        described = {"num_q": len(q), "num_k": len(k), "dtype": q.dtype, "head_width": q.shape[-1]}
        named = {key: options[key] for key in ("causal", "window", "dropout") if key in options}
        asked = Asked(**described, **named, distances=None if bias is None else bias.distances)
        self.asked.append((id(layout), asked))
        return sdpa(q, k, v, layout, **options)


@pytest.mark.parametrize(
    ("config", "fields"),
    [
        (DecoderConfig, {"window": 7, "global_every": 2, "attention_dropout": 0.1}),
        (EncoderConfig, MODERNBERT),
        (EncoderConfig, DEBERTA),
        (EncoderDecoderConfig, T5),
    ],
)
def test_what_is_planned_is_what_is_asked(config, fields):
    recorder, pairs = Recorder(), ragged_pairs([5, 9], [3, 4])
    batch, more = (pairs, [pairs.source]) if config is EncoderDecoderConfig else (ragged_batch([5, 9]), [])
    small_model(config, 1, recorder, fields)(
        batch.tokens, batch.positions, Layout.of(batch.offsets, batch.max_len), *more
    )
    assert len(recorder.planned) == len(recorder.asked) >= 2
    assert set(recorder.planned) == set(recorder.asked)

"""What the plan of a run says of products and attention, and that a run takes its changes to the process back."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch

from pretrain.distributed.world import World
from pretrain.models.attention.auto import AutoConfig
from pretrain.models.attention.eager import EagerConfig
from pretrain.models.base import AttentionUse, ModelConfig
from pretrain.models.decoder import DecoderConfig
from pretrain.models.encoder_decoder import EncoderDecoderConfig
from pretrain.strategy.compile import CompileNone
from pretrain.strategy.precision import BF16, FP32
from pretrain.train.computing import products_of, start_kernels


@dataclass
class Noted(EagerConfig):
    """Notes what it is started for, and its end."""

    calls: list = field(default_factory=list)

    def start(self, use, device):
        self.calls.append(use)
        return "noted"

    def end(self):
        self.calls.append("end")


@pytest.mark.parametrize(
    ("precision", "attention", "said"),
    [
        (FP32(), AutoConfig(), "products in fp32, attention by sdpa"),
        (BF16(), EagerConfig(), "products in bf16, attention by eager"),
    ],
)
def test_kernels_are_named(precision, attention, said):
    cfg = SimpleNamespace(precision=precision, attention=attention, compile=CompileNone())
    assert start_kernels(cfg, DecoderConfig(max_seq_len=8), World.alone()) == said
    assert start_kernels(cfg, ModelConfig(), World.alone()) == said.partition(",")[0]  # one without our attention


def test_a_backend_learns_what_a_network_asks_and_when_the_run_ends():
    attention = Noted()
    cfg = SimpleNamespace(precision=BF16(), attention=attention, compile=CompileNone())
    pairs = EncoderDecoderConfig(max_seq_len=8, width=96, heads=6, attention_dropout=0.1)
    grouped = DecoderConfig(max_seq_len=8, width=64, heads=4, kv_heads=2, layers=3, window=5, global_every=2)
    with pytest.raises(KeyboardInterrupt), products_of(cfg, torch.device("cpu")):
        for network in (pairs, grouped):
            start_kernels(cfg, network, World.alone())
        raise KeyboardInterrupt
    shared = {"dtype": torch.bfloat16, "biased": False, "head_width": 16}
    of_pairs = AttentionUse(heads=6, kv_heads=6, causal=(False, True), windows=(None,), dropout=0.1, **shared)
    of_grouped = AttentionUse(heads=4, kv_heads=2, causal=(True,), windows=(None, 5), **shared)
    assert attention.calls == [of_pairs, of_grouped, "end"]

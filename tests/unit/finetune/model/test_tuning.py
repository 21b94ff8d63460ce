"""What learns and what stays: adapters begin at nothing, an export adds them up, and freezing freezes."""

import itertools
from math import prod
from typing import Any, cast

import pytest
import torch
from small_models import VOCAB_SIZE, ragged_pairs
from torch.utils.flop_counter import FlopCounterMode

from finetune.model.base import FineTuned
from finetune.model.frozen import FrozenConfig, FullConfig
from finetune.model.language import AdaptedEncoderDecoder
from finetune.model.lora import LoraConfig, adapters_of
from finetune.model.losses import CrossEntropy
from pretrain.checkpoint.base import WEIGHT
from pretrain.data.batch import Batch
from pretrain.errors import CheckpointError, ConfigError
from pretrain.hub.family import head_for
from pretrain.hub.heads import HeadKind
from pretrain.init_from import InitialWeights
from pretrain.models.attention.eager import eager
from pretrain.models.attention.sdpa import sdpa
from pretrain.models.decoder import DecoderConfig
from pretrain.models.encoder import EncoderConfig
from pretrain.models.encoder_decoder import EncoderDecoderConfig
from pretrain.models.layers import Activation, Order
from pretrain.optim.adamw import AdamWConfig
from pretrain.optim.muon import MuonConfig

ENCODER = EncoderConfig(max_seq_len=12, width=20, layers=3, heads=4, mlp_width=44, init_std=0.3)
LLAMA_LIKE = {"max_seq_len": 12, "width": 20, "layers": 2, "heads": 4, "kv_heads": 2, "mlp_width": 44, "init_std": 0.3}
DECODER = DecoderConfig(**LLAMA_LIKE, bias=False, activation=Activation.swiglu)
ENCODER_DECODER = EncoderDecoderConfig(max_seq_len=12, width=20, layers=2, heads=4, decoder_layers=3, order=Order.pre)
LENGTHS = [5, 1, 9]
BATCH = Batch(
    tokens=torch.arange(15) * 7 % 31,
    positions=torch.cat([torch.arange(length) for length in LENGTHS]),
    offsets=torch.tensor([0, 5, 6, 15], dtype=torch.int32),
    max_len=9,
    targets=torch.full((15,), -100),
    num_targets=3,
    lengths=LENGTHS,
    labels=torch.tensor([2, 0, 1]),
)


def built(config, tuning=None, device="meta", attend=sdpa):
    with torch.device(device):
        model = config.build(vocab_size=31, attend=attend, head=False)
        if tuning:
            tuning.prepare(model)
        return FineTuned(
            model,
            config,
            head_for(config, HeadKind.sequence),
            HeadKind.sequence,
            CrossEntropy(),
            outputs=3,
            dropout=0.0,
        )


def drawn(module, seed=3):
    """Fill a module from its initial values, adapters with any values, and return it and its weights by name."""
    initial = InitialWeights(module, seed)
    module = module.to_empty(device="cpu")
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(initial(name, WEIGHT, 0, parameter.numel()).reshape(parameter.shape))
            if name.endswith("lora_b"):
                parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(prod(parameter.shape)))
    return module, {name: parameter.detach() for name, parameter in module.named_parameters()}


def test_adapters_change_nothing_until_they_learn_and_drop_only_what_they_read():
    tuning = LoraConfig(rank=2, dropout=0.5)
    adapted = built(ENCODER, tuning)
    initial = InitialWeights(adapted, 3)
    adapted = adapted.to_empty(device="cpu")
    for name, parameter in adapted.named_parameters():
        parameter.data.copy_(initial(name, WEIGHT, 0, parameter.numel()).reshape(parameter.shape))
        if name.endswith("mlp.down.lora_a"):
            assert parameter.std().item() == pytest.approx((3 * 44) ** -0.5, rel=0.2)
    plain, _ = drawn(built(ENCODER))
    assert torch.equal(adapted(BATCH).logits, plain(BATCH).logits)
    for name, parameter in adapted.named_parameters():
        parameter.data.add_(0.1 if name.endswith("lora_b") else 0.0)
    assert not torch.equal(adapted(BATCH).logits, adapted(BATCH).logits)
    assert torch.equal(adapted.eval()(BATCH).logits, adapted(BATCH).logits)


class Stored:
    """Weights as a committed step gives them."""

    step = "step"

    def __init__(self, values):
        self.values = values

    def weight_shapes(self):
        return {name: value.shape for name, value in self.values.items()}

    def __call__(self, name, kind, start, numel):
        assert kind == WEIGHT
        return self.values[name].reshape(-1)[start : start + numel].clone()


@pytest.mark.parametrize("layers", [["qkv", "up"], ["v", "gate", "q"]])
def test_merged_weights_are_read_in_any_runs_and_compute_the_same(layers):
    tuning = LoraConfig(rank=3, alpha=7.5, layers=layers)
    module, values = drawn(built(DECODER, tuning))
    merged = tuning.merged(cast(Any, Stored(values)), DECODER)
    plain = built(DECODER, device="cpu")
    assert merged.weight_shapes() == {name: parameter.shape for name, parameter in plain.named_parameters()}
    for name, parameter in plain.named_parameters():
        expected = values[name].double()
        if (stem := name.removesuffix("weight")) + "lora_a" in values:
            layer = module.get_submodule(stem[:-1])
            downs, ups = values[stem + "lora_a"].double().split(3), values[stem + "lora_b"].double()
            for part, down in zip(layer.adapted, downs, strict=True):
                up, ups = ups[: part.rows], ups[part.rows :]
                expected[part.row : part.end] += 2.5 * up @ down
        runs = itertools.pairwise([*range(0, parameter.numel(), 77), parameter.numel()])
        found = torch.cat([merged(name, WEIGHT, start, end - start) for start, end in runs]).view(parameter.shape)
        torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
        assert merged.kinds(name) == {WEIGHT: parameter.shape}
        parameter.data.copy_(found)
    torch.testing.assert_close(plain(BATCH).logits, module(BATCH).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("layers", "rows"),
    [
        (None, {"qkv": 20 + 2 * 10, "out": 20, "up": 2 * 44, "down": 20}),
        (["k", "up"], {"qkv": 10, "up": 44}),  # what a layer and a part of it are both called is the part
        (["qkv", "gate"], {"qkv": 20 + 2 * 10, "up": 44}),
    ],
)
def test_a_part_of_a_fused_projection_has_an_adapter_of_its_own(layers, rows):
    module = built(DECODER, LoraConfig(rank=3, layers=layers))
    adapters = {name.split(".")[-2]: layer for name, layer in adapters_of(module.model).items() if ".0." in name}
    assert {name: len(layer.lora_b) for name, layer in adapters.items()} == rows
    assert all(len(layer.lora_a) == 3 * len(layer.adapted) for layer in adapters.values())


def test_adapters_of_fused_projections_that_were_one_are_refused():
    tuning = LoraConfig(rank=3, layers=["qkv"])
    _, values = drawn(built(DECODER, tuning))
    for name in values:
        values[name] = values[name][:3] if name.endswith("lora_a") else values[name]
    rule = (
        r"step: model\.blocks\.0\.attention\.qkv\.lora_a is one adapter for q, k, v, .*init_from\), or train it again"
    )
    with pytest.raises(CheckpointError, match=rule):
        tuning.merged(cast(Any, Stored(values)), DECODER)


def test_adapters_are_in_cross_attention_too_unless_layers_are_named():
    def adapted(tuning):
        with torch.device("meta"):
            model = ENCODER_DECODER.build(vocab_size=31, attend=sdpa)
            tuning.prepare(model)
        assert not any(value.requires_grad for name, value in model.named_parameters() if "lora" not in name)
        found = (name.split(".") for name, _ in model.named_parameters() if name.endswith("lora_a"))
        return {(int(block), layer) for _, block, *_, layer, _ in found}

    of_encoder = {"qkv", "out", "up", "down"}
    of_decoder = of_encoder | {"q", "kv"}
    everywhere = {(block, layer) for block in range(5) for layer in (of_encoder if block < 2 else of_decoder)}
    assert adapted(LoraConfig()) == everywhere
    assert adapted(LoraConfig(layers=["kv", "qkv"])) == {each for each in everywhere if each[1] in ("kv", "qkv")}


def test_the_last_blocks_of_an_encoder_decoder_are_those_of_either_side():
    with torch.device("meta"):
        model = ENCODER_DECODER.build(vocab_size=31, attend=sdpa)
        FrozenConfig(blocks=1).prepare(model)
    learns = {name.partition(".attention")[0] for name, value in model.named_parameters() if value.requires_grad}
    assert {name for name in learns if "." not in name.removeprefix("blocks.")} == {"blocks.1", "blocks.4"}
    assert not model.embedding.weight.requires_grad and model.decoder_final_norm.weight.requires_grad


@pytest.mark.parametrize("config", [ENCODER, DECODER], ids=["encoder", "decoder"])
@pytest.mark.parametrize("blocks", [0, 1])
@pytest.mark.parametrize("optim", [AdamWConfig(), AdamWConfig(layer_decay=0.5), MuonConfig()], ids=str)
def test_frozen_blocks_get_no_gradients_and_stay(config, blocks, optim):
    module, values = drawn(built(config, FrozenConfig(blocks=blocks)))
    before = {name: value.clone() for name, value in values.items()}
    last = f"model.blocks.{config.layers - 1}."
    after = ("head.", last, "model.final_norm.") if blocks else ("head.",)
    optimizer = optim.build(module)
    module(BATCH).total.backward()
    optimizer.step()
    moved = {name for name, parameter in module.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {name for name in before if name.startswith(after)}
    assert all(parameter.grad is None for name, parameter in module.named_parameters() if name not in moved)


def counted(module, batch) -> int:
    """Return the operations of a step, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        module(batch).total.backward()
    return counter.get_total_flops()


SHAPE = {"max_seq_len": 40, "width": 64, "heads": 4, "mlp_width": 256}
every_tuning = pytest.mark.parametrize(
    "tuning", [FullConfig(), FrozenConfig(blocks=1), FrozenConfig(blocks=3), LoraConfig(rank=1)], ids=str
)


@every_tuning
def test_the_operations_of_a_step_are_those_that_torch_counts(tuning):
    module, _ = drawn(built(EncoderConfig(layers=4, **SHAPE), tuning, attend=eager))
    tokens = sum(LENGTHS)
    flops = tokens * module.flops_per_token(sum(length**2 for length in LENGTHS) / tokens)
    assert flops == pytest.approx(counted(module, BATCH), rel=0.05), "less what the first layer that learns reads"


@every_tuning
@pytest.mark.parametrize(("layers", "decoder_layers"), [(4, 3), (3, 6)])
def test_the_operations_of_two_sides_are_those_that_torch_counts(tuning, layers, decoder_layers):
    config = EncoderDecoderConfig(layers=layers, decoder_layers=decoder_layers, **SHAPE)
    source, target = 32, 11
    both = source + target
    with torch.device("meta"):
        model = config.build(vocab_size=VOCAB_SIZE, attend=eager)
        tuning.prepare(model)
        module = AdaptedEncoderDecoder(model, label_smoothing=0.0, target_share=target / both)
    module, _ = drawn(module)
    flops = both * module.flops_per_token(both)
    assert flops == pytest.approx(counted(module, ragged_pairs([source], [target])), rel=0.05)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FrozenConfig(blocks=-1), r"tuning\.blocks=-1: 0 \(none of the model\) or more"),
        (lambda: LoraConfig(rank=0), r"tuning\.rank=0: must be at least 1"),
        (lambda: LoraConfig(alpha=float("inf")), r"tuning\.alpha=inf: must be above 0, and finite"),
        (lambda: LoraConfig(alpha=0), r"tuning\.alpha=0: must be above 0"),
        (lambda: LoraConfig(dropout=1), r"tuning\.dropout=1: must lie in \[0, 1\)"),
        (lambda: LoraConfig(layers=[]), r"tuning\.layers=\[\]: name one at least"),
        (lambda: built(ENCODER, FrozenConfig(blocks=4)), r"tuning\.blocks=4: the model has 3 blocks; lower it"),
        (lambda: built(ENCODER, LoraConfig(layers=["q_proj"])), r"tuning\.layers=q_proj: .*choose among qkv, out, up"),
    ],
)
def test_what_cannot_be_is_refused_by_name(make, message):
    with pytest.raises(ConfigError, match=message):
        make()

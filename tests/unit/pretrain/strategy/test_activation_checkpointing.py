"""Activation checkpointing: the same gradients, and exactly the operators that each choice promises to run again."""

from collections import Counter

import pytest
import torch
from small_models import GEMMA3, ragged_batch, small_decoder, small_model
from torch._dynamo import reset
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.errors import ConfigError
from pretrain.models.attention.sdpa import sdpa
from pretrain.models.base import Stream
from pretrain.models.encoder_decoder import EncoderDecoderConfig
from pretrain.models.layers import Positions
from pretrain.objectives.causal_lm import CausalLMConfig
from pretrain.strategy.activation_checkpointing import RecomputationConfig, Recompute
from pretrain.strategy.compile import CompileBlock, Scope
from pretrain.strategy.ddp import DDPConfig

LAYERS = 5
ATTENTION = "aten::_scaled_dot_product_flash_attention_for_cpu"


class Counting(TorchDispatchMode):
    """Counts the operators that run."""

    def __init__(self):
        super().__init__()
        self.times = Counter()

    supports_higher_order_operators = True  # those of random states, which compiled graphs have

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.times[operator.name()] += 1
        return operator(*args, **(kwargs or {}))


def backward(cfg, **fields):
    """Return the gradients of a decoder, and what ran in its backward pass."""
    module = CausalLMConfig().build(small_decoder(layers=LAYERS, **fields))
    cfg.recompute(module.model)
    loss = module(ragged_batch([5, 5, 5])).total  # of one length: one call of attention a layer
    with Counting() as counting:
        loss.backward()
    return {name: parameter.grad for name, parameter in module.named_parameters()}, counting.times


def recomputation(choice, every):
    fields = {} if choice is Recompute.none else {"activation_checkpointing_every": every}
    return RecomputationConfig(activation_checkpointing=choice, **fields)


@pytest.mark.parametrize("fields", [{}, GEMMA3 | {"kv_heads": 2}, {"dropout": 0.3}], ids=["gpt", "gemma", "dropout"])
@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("choice", [Recompute.full, Recompute.selective])
def test_gradients_stay_bit_for_bit(choice, every, fields):
    gradients = []
    for chosen in (Recompute.none, choice):
        torch.manual_seed(5)
        gradients.append(backward(recomputation(chosen, every), **fields)[0])
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


@pytest.mark.parametrize("choice", [Recompute.full, Recompute.selective])
def test_gradients_of_relative_positions_stay_bit_for_bit(choice):
    """Blocks that are computed again find the plans of the first time in their layouts, and take the same gradient."""
    target, source = (
        Stream(batch.tokens, batch.positions, batch.offsets, batch.max_len)
        for batch in (ragged_batch([5, 3, 40]), ragged_batch([4, 40, 2]))
    )
    gradients = []
    for chosen in (Recompute.none, choice):
        fields = {"positions": Positions.relative, "buckets": 8, "max_distance": 20}
        model = small_model(EncoderDecoderConfig, 1, sdpa, fields)
        RecomputationConfig(activation_checkpointing=chosen).recompute(model)
        model(target.tokens, target.positions, target.layout, source).square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert gradients[0]["encoder_distance_embedding.weight"].any()
    assert gradients[0]["decoder_distance_embedding.weight"].any()
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


@pytest.mark.parametrize(("every", "blocks"), [(1, 5), (2, 3), (5, 1), (9, 1)])
def test_what_runs_again(every, blocks):
    ran = {choice: backward(recomputation(choice, every))[1] for choice in Recompute}
    counts = lambda name: [ran[choice][name] for choice in Recompute]
    assert counts("aten::gelu") == [0, blocks, blocks]
    assert counts("aten::native_layer_norm") == [0, 2 * blocks, 2 * blocks]
    assert counts(ATTENTION) == [0, blocks, 0]
    none, full, selective = counts("aten::addmm")
    assert (none, selective) == (0, 0)
    assert full >= 3 * blocks, "all but the last projection, whose outcome nobody needs"


def test_every_strategy_refuses_what_is_no_number_of_blocks():
    with pytest.raises(ConfigError, match=r"strategy.activation_checkpointing_every=0: at least 1 block"):
        DDPConfig(activation_checkpointing_every=0)
    with pytest.raises(ConfigError, match=r"strategy.activation_checkpointing_every=2: no block is recomputed; set"):
        DDPConfig(activation_checkpointing_every=2)


@pytest.mark.parametrize("choice", Recompute)
def test_compiled_blocks_save_what_the_choice_says_and_take_the_same_gradients(monkeypatch, choice):
    """The compiler splits each block's graph itself, by the marks of the choice: see what runs backward."""
    reset()
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, *, mode, **options: compiler(f, backend="aot_eager", **options))
    found = {}
    for scope in (Scope.none, Scope.block):
        module = CausalLMConfig().build(small_decoder(layers=2))
        RecomputationConfig(activation_checkpointing=choice).recompute(module.model)
        CompileBlock().apply(module.model, scope)
        loss = module(ragged_batch([5, 5, 5])).total
        with Counting() as counting:
            loss.backward()
        found[scope] = [parameter.grad for parameter in module.parameters()], counting.times
    (gradients, eager), (compiled, times) = found.values()
    for one, other in zip(gradients, compiled, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
    products = lambda ran: ran["aten::mm"] + ran["aten::addmm"]
    assert products(times) == products(eager)
    again = times[ATTENTION] + times["run_with_rng_state"]  # which it is wrapped in, as if it drew numbers
    assert again == (2 if choice is Recompute.full else 0)

"""Graphs of compiled blocks: one a kind of block and mode, for ragged batches of all sizes, and no break."""

import logging
import math
from functools import partial

import pytest
import torch
from small_models import BART, DEBERTA, GEMMA3, LLAMA, MODERNBERT, QWEN3, ROBERTA, T5, ragged_batch, ragged_pairs
from small_models import small_model as small
from torch._dynamo import graph_break, reset

from pretrain.errors import ConfigError
from pretrain.models.attention.flash import kernel_window
from pretrain.models.attention.flex import Flex, biased_score, document_mask
from pretrain.models.attention.sdpa import sdpa
from pretrain.models.base import Layout
from pretrain.models.decoder import DecoderConfig
from pretrain.models.encoder import EncoderConfig
from pretrain.models.encoder_decoder import EncoderDecoderConfig
from pretrain.strategy.activation_checkpointing import RecomputationConfig, Recompute
from pretrain.strategy.compile import CompileBlock, Scope
from pretrain.strategy.float8 import FP8

LOCAL = {"window": 7, "global_every": 2}
GROUPED = {"kv_heads": 2}
# The model and the graphs of a mode: one a kind of block; with a bias, one more where the first block makes the plan.
FAMILIES = {
    "GPT-2": (DecoderConfig, {}, 1),
    "Llama": (DecoderConfig, LLAMA | GROUPED, 1),
    "Qwen 3": (DecoderConfig, QWEN3 | GROUPED, 1),
    "Gemma 3": (DecoderConfig, GEMMA3 | GROUPED | LOCAL, 2),
    "BERT": (EncoderConfig, {}, 1),
    "RoBERTa": (EncoderConfig, ROBERTA, 1),
    "ModernBERT": (EncoderConfig, MODERNBERT | LOCAL, 3),
    "DeBERTa": (EncoderConfig, DEBERTA, 2),
    "T5": (EncoderDecoderConfig, T5, 4),
    "BART": (EncoderDecoderConfig, BART, 2),
}
FAST = {"ModernBERT"}  # most kinds of blocks; seconds each
WARM_UP = [[12, 12], [2, 2]]  # as many tokens as the model is wide; as many as offsets less one, and the longest
BATCHES = [[3, 20], [24], [1], [1, 1, 1], [30, 2, 9, 1, 1], [8] * 3, [31], [1, 23]]


@torch.library.custom_op("headwater_tests::varlen", mutates_args={})
def varlen(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, q_offsets: torch.Tensor, max_q: int, max_k: int, w: list[int]
) -> torch.Tensor:
    """Stand in for the kernel of `flash`: it takes the same sizes as integers, and gives nothing of sense."""
    return q * (1.0 + len(q_offsets) + max_q + max_k + sum(w))


varlen.register_fake(lambda q, *_: torch.empty_like(q))
varlen.register_autograd(
    lambda ctx, g: (g, *(torch.zeros_like(x) for x in ctx.saved_tensors), None, None, None, None),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[1], inputs[2]),
)


def fused(q, k, v, layout, *, causal, window=None, dropout=0.0, scale=None, bias=None):
    """Read of the layout what `flash` reads; with a bias, what `flex` reads, by its own functions."""
    if bias is None:
        return varlen(q, k, v, layout.q_offsets, layout.max_q, layout.max_k, list(kernel_window(window, causal)))
    row, column = torch.arange(len(q))[:, None], torch.arange(len(k))
    score = torch.einsum("qhe,khe->hqk", q, k)
    head = torch.arange(len(score))[:, None, None]
    score = biased_score(layout, len(q), len(k), bias)(score, None, head, row, column)
    seen = document_mask(layout, len(q), len(k), causal, window)(None, None, row, column)
    return torch.einsum("hqk,khe->qhe", score.masked_fill(~seen, -math.inf).softmax(-1), v)


class Graphs:
    """A backend that runs graphs as they are, and counts them and their calls."""

    def __init__(self):
        self.made, self.calls = 0, 0

    def __call__(self, graph, inputs):
        self.made += 1

        def run(*args):
            self.calls += 1
            return graph.forward(*args)

        return run


@pytest.fixture
def graphs(monkeypatch):
    reset()
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "disabled", True)  # pytest would format each of its lines
    backend = Graphs()
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, *, mode=None, **options: compiler(f, backend=backend, **options))
    return backend


def compiled(family, attend=fused, layers=2, recompute=Recompute.none):
    config, fields, _ = FAMILIES[family]
    model = small(config, 1, attend, fields | {"layers": layers})
    RecomputationConfig(activation_checkpointing=recompute).recompute(model)
    CompileBlock().apply(model, Scope.block)
    return model


def ran(model, lengths, *, train):
    """Run a pass over sequences of these lengths; targets are shorter or longer than sources by turns."""
    with torch.set_grad_enabled(train):
        model.train(train)
        if isinstance(model.config, EncoderDecoderConfig):
            batch = ragged_pairs([1 + 5 * n % 11 for n in lengths], lengths)
            inputs = (batch.source,)
        else:
            batch, inputs = ragged_batch(lengths), ()
        out = model(batch.tokens, batch.positions, Layout.of(batch.offsets, batch.max_len, lengths), *inputs)
        if train:
            out.square().sum().backward()


@pytest.mark.parametrize(
    "family", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_no_block_is_compiled_again_after_the_first_step_and_evaluation(graphs, family):
    model = compiled(family, layers=3 if family == "ModernBERT" else 2)
    for lengths, train in zip(WARM_UP, (False, True), strict=True):
        ran(model, lengths, train=train)
    assert graphs.made == 2 * FAMILIES[family][2]
    for lengths in BATCHES:
        for train in (True, False):
            graphs.calls, blocks = 0, len(model.blocks)
            ran(model, lengths, train=train)
            assert graphs.calls == blocks or sum(lengths) == 1, "blocks run compiled, but for single tokens"
    assert graphs.made == 2 * FAMILIES[family][2]


class FlexOnCPU(Flex):
    """Computes where the backend refuses to: on a CPU, where it has a forward pass alone. Graphs are those of a GPU."""

    def __call__(self, q, k, v, layout, *, causal, window=None, dropout=0.0, scale=None, bias=None):
        query, key, value = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
        mask = self._mask(layout, len(q), len(k), causal, window)
        return self._inside(query, key, value, block_mask=mask, scale=scale).squeeze(0).transpose(0, 1)

    def plan(self, layout, asked):
        self._mask(layout, asked.num_q, asked.num_k, asked.causal, asked.window)


@pytest.mark.slow
def test_streams_within_one_block_of_flex_have_one_more_graph_whatever_their_sizes(graphs):
    """One of the mask and one of the blocks: sizes of 1 have graphs of their own, here those of the mask."""
    model = small(DecoderConfig, 1, FlexOnCPU(), {"layers": 2, "width": 64, "max_seq_len": 300})
    CompileBlock().apply(model, Scope.block)
    ran(model, [100, 200], train=False)
    assert graphs.made == 2
    for lengths in ([40, 23], [5], [260], [127], [128], [129], [30, 30], [300]):
        ran(model, lengths, train=False)
        assert graphs.made == 4


def test_blocks_in_float8_share_their_graphs_and_keep_their_gradients(graphs):
    def course(compiles):
        model = small(DecoderConfig, 1, fused, {"layers": 2, "width": 64})
        FP8(emulate=True, min_width=1).convert(model)
        if compiles:
            RecomputationConfig(activation_checkpointing=Recompute.selective).recompute(model)
            CompileBlock().apply(model, Scope.block)
        for lengths in ([3, 20], [7, 4, 6]):
            ran(model, lengths, train=True)
        return [parameter.grad for parameter in model.parameters()]

    torch.testing.assert_close(course(True), course(False))
    assert graphs.made == 1


def test_a_size_that_becomes_part_of_a_graph_is_seen(graphs, caplog):
    """What the test above would miss if it could not fail: attention that asks for a length as a number."""

    def asking(q, k, v, layout, **options):
        return fused(q, k, v, layout, **options) * (2.0 if layout.max_q == 9 else 1.0)

    model = compiled("BERT", asking, layers=1)
    for lengths in ([4, 9], [5, 9], [8, 3]):
        ran(model, lengths, train=True)
    assert graphs.made == 2
    assert "compile: 1 more graphs, for a batch of 11 tokens" in caplog.text


def test_a_break_is_an_error_at_the_start_and_a_warning_later(graphs, caplog):
    def breaking(q, k, v, layout, *, broken, **options):
        if broken(layout):
            graph_break()
        return fused(q, k, v, layout, **options)

    with pytest.raises(ConfigError, match=r"compile=block: block 0 cannot be compiled: (.|\n)*set compile=none"):
        ran(compiled("BERT", partial(breaking, broken=lambda layout: True)), [3, 4], train=True)
    model = compiled("BERT", partial(breaking, broken=lambda layout: layout.max_q > 9))
    ran(model, [3, 4], train=True)
    ran(model, [3, 14], train=True)
    assert "block 1 runs eagerly from here on, at 17 tokens: Call to `torch._dynamo.graph_break()`" in caplog.text


def test_attention_of_ragged_batches_on_a_cpu_is_a_break_that_is_meant(graphs):
    ran(compiled("Llama", sdpa, layers=1), [3, 9], train=True)
    assert graphs.made > 1
    with pytest.raises(ConfigError, match=r"block 0 cannot be compiled: (.|\n)*attend_ragged"):
        ran(compiled("Llama", sdpa, layers=1, recompute=Recompute.full), [3, 9], train=True)


def test_settings_of_the_process_are_as_before(graphs):
    from torch._dynamo import config
    from torch.fx.experimental import _config as shapes

    before = config.optimize_ddp, config.recompile_limit, config.fail_on_recompile_limit_hit, shapes.use_duck_shape
    within = []
    model = compiled("BERT", layers=1)
    model.embedding.register_forward_hook(lambda *_: within.append(config.optimize_ddp))
    ran(model, [3, 4], train=True)
    after = config.optimize_ddp, config.recompile_limit, config.fail_on_recompile_limit_hit, shapes.use_duck_shape
    assert (after, within) == (before, [False])

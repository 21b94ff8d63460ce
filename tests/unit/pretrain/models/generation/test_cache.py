"""Keys and values that are kept: what is computed of them equals passes over whole texts, whatever leaves or moves."""

import pytest
import torch
import torch.nn.functional as F
from attention_laws import layout
from family_shapes import SCALINGS
from small_models import LLAMA, VOCAB_SIZE, small_decoder

from pretrain.models.attention.eager import eager
from pretrain.models.attention.relative import RelativeBias
from pretrain.models.base import Layout
from pretrain.models.generation import cache as caches
from pretrain.models.generation.cache import Columns, KeyValueCache, SourceCache
from pretrain.models.generation.steps import DecoderSteps, going_on
from pretrain.models.layers import Activation, Norm, Order, QKNorm

PROMPTS = [5, 1, 9, 3]
CPU = torch.device("cpu")


def drawn(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def relative(heads):
    return RelativeBias(drawn(8, heads, seed=99), bidirectional=False, max_distance=12)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
@pytest.mark.parametrize("mask", [{}, {"window": 3}, {"scale": 1.0, "bias": relative(4)}], ids=["", "window", "bias"])
def test_a_new_token_sees_what_it_would_see_in_its_whole_text(heads, mask, monkeypatch):
    monkeypatch.setattr(caches, "ROOM", 2)  # soon full
    columns = Columns(PROMPTS, CPU)
    cache = KeyValueCache(columns, eager)
    mask = {"causal": True} | mask
    tokens = [
        [drawn(30, count, 8, seed=10 * text + n) for n, count in enumerate((heads[0], *[heads[1]] * 2))]
        for text in range(len(PROMPTS))
    ]  # q, k and v of each text, of which it takes as many as it gets
    texts, lengths = list(range(len(PROMPTS))), list(PROMPTS)

    def newest(count):
        parts = zip(
            *(
                [x[length - count(length) : length] for x in tokens[text]]
                for text, length in zip(texts, lengths, strict=True)
            ),
            strict=True,
        )
        return [torch.cat(part) for part in parts]

    def whole(text, length):
        return eager(*(x[:length] for x in tokens[text]), layout([length]), **mask)

    found = cache(*newest(lambda length: length), layout(lengths), **mask)
    assert torch.equal(found, torch.cat([whole(*pair) for pair in zip(texts, lengths, strict=True)]))
    for rows in ([0, 1, 2, 3], [0, 1, 3], [2, 1], [0, 1], [1, 0, 1], [2, 2, 0], [0, 1, 2], [0, 2]):
        columns.select(rows)
        moved = torch.tensor([place for place, row in enumerate(rows) if place != row], dtype=torch.int64)
        cache.select(torch.tensor(rows), moved)
        texts, lengths = [texts[row] for row in rows], [lengths[row] + 1 for row in rows]
        columns.end += 1
        found = cache(*newest(lambda length: 1), Layout.of(torch.arange(len(rows) + 1), 1), **mask)
        expected = [whole(text, length)[-1:] for text, length in zip(texts, lengths, strict=True)]
        torch.testing.assert_close(found, torch.cat(expected), atol=1e-6, rtol=1e-5)


NETWORKS = {
    "llama 3": {"rope_scaling": SCALINGS["llama3"], "attention_width": 40, "kv_heads": 2},
    "qwen 2": {"qkv_bias": True, "rope_scaling": SCALINGS["yarn"], "window": 3},
    "qwen 3, half rotated": {"qk_norm": QKNorm.head, "rotary_share": 0.5, "attention_width": 32},
    "gemma 3": {
        **{"qk_norm": QKNorm.head, "order": Order.sandwich, "norm": Norm.zero_centered_rmsnorm, "score_width": 9},
        **{"window": 3, "global_every": 2, "global_first": 1, "local_rope_theta": 50.0, "embedding_scale": True},
        "rope_scaling": SCALINGS["linear"],
    },
    "olmo 2": {"qk_norm": QKNorm.projection, "order": Order.output, "kv_heads": 2},
    "gpt-neox": {"order": Order.parallel, "norm": Norm.layernorm, "bias": True, "activation": Activation.gelu},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_steps_compute_what_a_pass_over_the_whole_text_does(name):
    model = small_decoder(**LLAMA | NETWORKS[name], init_std=0.3).eval()
    texts = torch.randint(VOCAB_SIZE, (len(PROMPTS), max(PROMPTS) + 4), generator=torch.Generator().manual_seed(1))

    def whole(lengths):
        tokens = torch.cat([text[:length] for text, length in zip(texts, lengths, strict=True)])
        positions = torch.cat([torch.arange(length) for length in lengths])
        ends = torch.tensor(lengths).cumsum(0) - 1
        return F.linear(model(tokens, positions, layout(lengths))[ends], model.head_weight())

    with torch.no_grad():
        steps, lengths = DecoderSteps(model, [text[:n] for text, n in zip(texts, PROMPTS, strict=True)]), PROMPTS
        found = steps.begin()
        for _ in range(4):
            torch.testing.assert_close(found, whole(lengths), atol=2e-5, rtol=1e-5)
            found = steps.step(texts[range(len(texts)), lengths])
            lengths = [length + 1 for length in lengths]


def test_texts_of_a_source_see_all_of_it_and_no_other():
    lengths, texts = [4, 7, 1], 2
    k, v = drawn(12, 3, 8, seed=1), drawn(12, 3, 8, seed=2)
    columns = Columns(lengths, CPU)
    cache, kept, ends = SourceCache(columns, k, v), [0, 1, 2], [4, 11, 12]
    for rows in ([0, 1, 2], [2, 1], [0]):
        columns.select(rows)
        moved = torch.tensor([place for place, row in enumerate(rows) if place != row], dtype=torch.int64)
        cache.select(torch.tensor(rows), moved)
        kept = [kept[row] for row in rows]
        q = drawn(len(rows) * texts, 3, 8, seed=len(rows))
        own = torch.cat([torch.arange(ends[source] - lengths[source], ends[source]) for source in kept])
        across = layout([texts] * len(rows), [lengths[source] for source in kept])
        expected = eager(q, k[own], v[own], across, causal=False, scale=0.7)
        torch.testing.assert_close(cache.attend(q, layout([1]), 0.7), expected, atol=1e-6, rtol=1e-5)


def test_few_rows_move_when_some_end():
    assert going_on(5, [1]) == [0, 4, 2, 3]
    assert going_on(5, [4, 0]) == [3, 1, 2]
    assert going_on(3, [0, 1]) == [2]
    assert going_on(3, []) == [0, 1, 2]

"""Keys and values that are kept: attention over them equals attention over whole texts, whatever leaves or moves."""

import pytest
import torch
from attention_laws import layout

from pretrain.models.attention.eager import eager
from pretrain.models.attention.relative import RelativeBias
from pretrain.models.base import Layout
from pretrain.models.generation import cache as caches
from pretrain.models.generation.cache import Columns, KeyValueCache, SourceCache
from pretrain.models.generation.steps import going_on

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

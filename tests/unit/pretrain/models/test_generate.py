"""Generation: the cache changes nothing, the filters keep what they say, limits are refused by name."""

import pytest
import torch
from attention_laws import layout
from small_models import LLAMA, VOCAB_SIZE, small_decoder

from pretrain.models.attention.eager import eager
from pretrain.models.attention.sdpa import sdpa
from pretrain.models.generate import Sampler, generate
from pretrain.models.layers import Positions

GREEDY = {"temperature": 0.0}
GREEDILY = Sampler(**GREEDY)
SEEDED = {"temperature": 0.8, "top_k": 20, "top_p": 0.9}
MODELS = [
    {},
    {"positions": Positions.sinusoidal},
    {**LLAMA, "kv_heads": 2},
    {**LLAMA, "window": 4, "global_every": 2, "attend": eager},
]


def prompts(num_samples, length):
    return torch.randint(VOCAB_SIZE, (num_samples, length), generator=torch.Generator().manual_seed(5))


def confident(**fields):
    """Return a decoder whose weights are large enough for its tokens to depend on what came before."""
    model = small_decoder(init_std=0.3, **fields)
    return model.eval()


def without_cache(model, tokens, sampler, *, max_tokens):
    """Return what `generate` yields, computing the whole text anew for every token."""
    for _ in range(max_tokens):
        num_samples, length = tokens.shape
        positions = torch.arange(length).repeat(num_samples)
        hidden = model(tokens.flatten(), positions, layout([length] * num_samples))
        logits = (hidden @ model.head_weight().T)[length - 1 :: length]
        tokens = torch.cat([tokens, sampler(logits)[:, None]], dim=1)
    return tokens[:, -max_tokens:]


@pytest.mark.parametrize("settings", [GREEDY, SEEDED])
@pytest.mark.parametrize("fields", MODELS)
def test_the_cache_changes_nothing(fields, settings):
    model, prompt = confident(**fields), prompts(3, 5)
    samplers = [Sampler(generator=torch.Generator().manual_seed(7), **settings) for _ in range(2)]
    found = torch.stack(list(generate(model, prompt, samplers[0], max_tokens=20)), dim=1)
    expected = without_cache(model, prompt, samplers[1], max_tokens=20)
    assert found.tolist() == expected.tolist()
    assert len({tuple(row) for row in found.tolist()}) > 1


def test_one_token_of_prompt_is_enough_and_one_sample_too():
    model = confident()
    drawn = list(generate(model, prompts(1, 1), GREEDILY, max_tokens=31))
    assert [token.shape for token in drawn] == [(1,)] * 31


def test_a_stopped_sample_repeats_the_stop_token():
    model, prompt = confident(), prompts(3, 5)

    def drawn(stop_id):
        sampler = Sampler(generator=torch.Generator().manual_seed(2))
        return torch.stack(list(generate(model, prompt, sampler, max_tokens=20, stop_id=stop_id)), dim=1)

    free = drawn(None)
    stop_id = int(free[0, 3])
    stopped = drawn(stop_id)
    assert stopped[0].tolist() != free[0].tolist()
    for row, whole in zip(stopped.tolist(), free.tolist(), strict=True):
        end = whole.index(stop_id) + 1 if stop_id in whole else len(whole)
        assert row == (whole[:end] + [stop_id] * 20)[: len(row)]


def test_ends_when_every_sample_has_stopped():
    model, prompt = confident(), prompts(1, 5)
    free = [int(token) for token in generate(model, prompt, GREEDILY, max_tokens=20)]
    stopped = [int(token) for token in generate(model, prompt, GREEDILY, max_tokens=20, stop_id=free[3])]
    assert stopped == free[: free.index(free[3]) + 1]


def test_filters_keep_the_likeliest_tokens():
    probabilities = torch.tensor([[0.4, 0.05, 0.3, 0.25], [0.97, 0.01, 0.01, 0.01]])
    logits = probabilities.log().repeat(2000, 1)

    def kept(**settings):
        generator = torch.Generator().manual_seed(0)
        drawn = Sampler(generator=generator, **settings)(logits).view(-1, 2)
        return [sorted(set(column.tolist())) for column in drawn.T]

    assert kept() == [[0, 1, 2, 3], [0, 1, 2, 3]]
    assert kept(top_k=1) == [[0], [0]]
    assert kept(top_k=3)[0] == [0, 2, 3]
    assert kept(top_k=99)[0] == [0, 1, 2, 3]
    assert kept(top_p=0.6) == [[0, 2], [0]]
    assert kept(top_p=0.01) == [[0], [0]]
    assert kept(top_k=2, top_p=0.9)[0] == [0, 2]


def test_temperature_shapes_the_distribution():
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    for temperature in (0.5, 1.0, 2.0):
        generator = torch.Generator().manual_seed(0)
        drawn = Sampler(temperature=temperature, generator=generator)(logits.expand(40_000, 3))
        expected = (logits[0] / temperature).softmax(0)
        torch.testing.assert_close(drawn.bincount(minlength=3) / 40_000, expected, atol=0.01, rtol=0)
    assert GREEDILY(logits).tolist() == [2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_tokens": 28}, "max_tokens=28: a prompt of 5 tokens leaves 27 of the model's 32 learned positions"),
        ({"max_tokens": 0}, "max_tokens=0: must be at least 1"),
        ({"temperature": -1.0}, r"temperature=-1\.0: must not be negative"),
        ({"top_k": 0}, "top_k=0: must be at least 1"),
        ({"top_p": 0.0}, r"top_p=0\.0: must lie in"),
        ({"prompt": torch.empty(1, 0, dtype=torch.int64)}, "prompt=empty"),
        ({"prompt": torch.zeros(1, 40, dtype=torch.int64)}, "a prompt of 40 tokens leaves 0"),
    ],
)
def test_refuses_by_name_and_at_once(settings, message):
    settings = {"prompt": prompts(1, 5), "max_tokens": 4, **settings}
    with pytest.raises(ValueError, match=message):
        prompt, max_tokens = settings.pop("prompt"), settings.pop("max_tokens")
        generate(confident(), prompt, Sampler(**settings), max_tokens=max_tokens)


def test_computed_positions_have_no_limit():
    model = confident(**LLAMA, attend=sdpa)
    assert len(list(generate(model, prompts(1, 5), GREEDILY, max_tokens=40))) == 40

"""Generation: the cache changes nothing, the filters keep what they say, limits are refused by name."""

import math
from functools import partial

import pytest
import torch
from attention_laws import layout
from small_models import BART, GEMMA3, LLAMA, OLMO2, T5_GATED, VOCAB_SIZE, small_decoder, small_encoder_decoder

from pretrain.errors import NumericalError
from pretrain.models.attention.eager import eager
from pretrain.models.attention.sdpa import sdpa
from pretrain.models.encoder_decoder import EncoderDecoder
from pretrain.models.generation.generate import generate
from pretrain.models.generation.sampling import Sampler
from pretrain.models.layers import Positions

GREEDY = {"temperature": 0.0}
GREEDILY = Sampler(**GREEDY)
SEEDED = {"temperature": 0.8, "top_k": 20, "top_p": 0.9}
MODELS = [
    {},
    {"positions": Positions.sinusoidal},
    {**OLMO2, "kv_heads": 2},
    {
        **{**GEMMA3, "attention_width": 40, "score_width": 5, "local_rope_theta": 1e2, "attend": eager},
        **{"window": 4, "global_every": 2, "global_first": 1},
    },
]


def prompts(*lengths):
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(VOCAB_SIZE, (length,), generator=generator) for length in lengths]


def confident(**fields):
    """Return a decoder whose weights are large enough for its tokens to depend on what came before."""
    model = small_decoder(init_std=0.3, **fields)
    return model.eval()


def without_cache(model, prompt, sampler, *, max_tokens, stream=0):
    """Return what `generate` returns of one prompt, computing the whole text anew for every token."""
    ids, numbers = prompt, torch.from_numpy(sampler.numbers(stream, max_tokens))
    for place in range(max_tokens):
        hidden = model(ids, torch.arange(len(ids)), layout([len(ids)]))
        ids = torch.cat([ids, sampler(hidden[-1:] @ model.head_weight().T, numbers[place, None])])
    return ids[len(prompt) :].tolist()


@pytest.mark.parametrize("settings", [GREEDY, SEEDED])
@pytest.mark.parametrize("fields", MODELS)
def test_prompts_of_any_lengths_are_continued_as_if_each_were_alone(fields, settings):
    model, several, sampler = confident(**fields), prompts(5, 1, 12, 5, 2), Sampler(**settings)
    found = generate(model, several, sampler, max_tokens=20)
    assert found == [
        without_cache(model, prompt, sampler, max_tokens=20, stream=stream) for stream, prompt in enumerate(several)
    ]
    assert len({tuple(ids) for ids in found}) > 1


def test_streams_say_by_which_numbers_a_text_is_drawn():
    model, [one, other], sampler = confident(), prompts(5, 3), Sampler(**SEEDED)
    found = generate(model, [one, one, other, one], sampler, max_tokens=12, streams=[0, 1, 0, 0])
    assert found[0] == found[3] != found[1]
    assert found[2:3] == generate(model, [other], sampler, max_tokens=12)
    assert found[0] != generate(model, [one], Sampler(**SEEDED, seed=2), max_tokens=12)[0]


def test_a_text_ends_with_its_stop_token_and_others_go_on():
    model, several = confident(), prompts(5, 2, 9)
    free = generate(model, several, Sampler(), max_tokens=20)
    stop_id = free[1][3]
    stopped = generate(model, several, Sampler(), max_tokens=20, stop_ids=[stop_id])
    assert stopped == [ids[: ids.index(stop_id) + 1] if stop_id in ids else ids for ids in free]
    assert len(stopped[1]) == 4 and max(map(len, stopped)) > 4


def test_a_text_ends_where_the_positions_do_and_others_go_on():
    found = generate(confident(), prompts(5, 31, 1), GREEDILY, max_tokens=29)  # of 32
    assert [len(ids) for ids in found] == [27, 1, 29]


def test_an_encoder_decoder_writes_as_long_a_text_as_it_can_learn():
    """Of 32 positions the start token has the first, and the last token needs none."""
    model = small_encoder_decoder(**BART).eval()
    found = generate(model, prompts(1, 1), GREEDILY, max_tokens=40, sources=prompts(3, 32))
    assert [len(ids) for ids in found] == [32, 32]


def test_numbers_draw_tokens_as_often_as_they_are_likely():
    probabilities = torch.tensor([0.5, 0.0, 0.2, 0.3])
    logits = probabilities.log().expand(10, 4)
    numbers = torch.tensor([0.0, 0.1, 0.3, 0.49, 0.51, 0.6, 0.69, 0.71, 0.9, 1 - 2**-53], dtype=torch.float64)
    assert Sampler()(logits, numbers).tolist() == [0, 0, 0, 0, 2, 2, 2, 3, 3, 3]


def test_weights_that_are_no_numbers_are_refused():
    model = confident()
    model.final_norm.weight.data[0] = float("nan")
    with pytest.raises(NumericalError, match="not finite"):
        generate(model, prompts(4), GREEDILY, max_tokens=3)


def test_filters_keep_the_likeliest_tokens():
    probabilities = torch.tensor([[0.4, 0.05, 0.3, 0.25], [0.97, 0.01, 0.01, 0.01]])
    logits = probabilities.log().repeat(2000, 1)

    def evenly(count):
        return torch.from_numpy(Sampler(seed=0).numbers(0, count))

    def kept(**settings):
        drawn = Sampler(**settings)(logits, evenly(len(logits))).view(-1, 2)
        return [sorted(set(column.tolist())) for column in drawn.T]

    assert kept() == [[0, 1, 2, 3], [0, 1, 2, 3]]
    assert kept(top_k=1) == [[0], [0]]
    assert kept(top_k=3)[0] == [0, 2, 3]
    assert kept(top_k=99)[0] == [0, 1, 2, 3]
    assert kept(top_p=0.6) == [[0, 2], [0]]
    assert kept(top_p=0.01) == [[0], [0]]
    assert kept(top_k=2, top_p=0.9)[0] == [0, 2]
    assert kept(min_p=0.5) == [[0, 2, 3], [0]]  # of the likeliest one's 0.4 and 0.97
    assert kept(min_p=0.7)[0] == [0, 2]
    assert kept(min_p=1.0) == [[0], [0]]
    assert kept(min_p=0.7, temperature=2.0)[0] == [0, 2, 3]  # of probabilities that are closer together


def test_temperature_shapes_the_distribution():
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    for temperature in (0.5, 1.0, 2.0):
        sampler = Sampler(temperature=temperature, seed=-1)
        drawn = sampler(logits.expand(40_000, 3), torch.from_numpy(sampler.numbers(3, 40_000)))
        expected = (logits[0] / temperature).softmax(0)
        torch.testing.assert_close(drawn.bincount(minlength=3) / 40_000, expected, atol=0.01, rtol=0)
    assert GREEDILY(logits, torch.tensor([0.0])).tolist() == [2]
    for temperature in (1e-38, 1e-45, 1e-320):  # the logits over it are beyond a float
        assert Sampler(temperature=temperature)(logits, torch.tensor([0.9], dtype=torch.float64)).tolist() == [2]


def test_a_bound_beyond_all_positions_takes_no_memory():
    [ids] = generate(confident(), prompts(30), GREEDILY, max_tokens=10**12)
    assert len(ids) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_tokens": 0}, "max_tokens=0: must be at least 1"),
        ({"temperature": -1.0}, r"temperature=-1\.0: must not be negative"),
        ({"temperature": math.inf}, "temperature=inf: must not be negative, and finite"),
        ({"top_k": 0}, "top_k=0: must be at least 1"),
        ({"top_p": 0.0}, r"top_p=0\.0: must lie in"),
        ({"min_p": 1.5}, r"min_p=1\.5: must lie in"),
        ({"sources": prompts(3)}, "sources=1: a decoder reads none"),
        ({"prompts": prompts(3, 0)}, "prompt=empty"),
        ({"prompts": prompts(3, 32)}, "prompt=2: its 32 tokens leave none of the model's 32 positions"),
    ],
)
def test_refuses_by_name_and_at_once(settings, message):
    settings = {"prompts": prompts(5), "max_tokens": 4, **settings}
    several = {name: settings.pop(name) for name in ("prompts", "max_tokens", "sources") if name in settings}
    with pytest.raises(ValueError, match=message):
        generate(confident(), **several, sampler=Sampler(**settings))


@pytest.mark.parametrize(
    ("starts", "sources", "message"),
    [
        (prompts(1, 1), None, "sources=0: an encoder-decoder reads one a prompt, 2"),
        (prompts(1, 2), prompts(3, 4), r"prompts=\[1, 2\]: an encoder-decoder's have one length"),
        (prompts(1, 1), prompts(3, 0), "source=2: must hold at least one token"),
        (prompts(1, 1), prompts(33, 2), "source=1: its 33 tokens are more than the model's 32 positions"),
    ],
)
def test_an_encoder_decoder_refuses_sources_by_name(starts, sources, message):
    model = small_encoder_decoder(**BART).eval()
    with pytest.raises(ValueError, match=message):
        generate(model, starts, GREEDILY, max_tokens=2, sources=sources)


def test_a_callback_ends_texts():
    model, several = confident(), prompts(5, 2, 9)
    free = generate(model, several, Sampler(), max_tokens=12)
    ends = [4, 12, 7]
    found = generate(model, several, Sampler(), max_tokens=12, stops=lambda row, ids: len(ids) == ends[row])
    assert found == [ids[:end] for ids, end in zip(free, ends, strict=True)]


def test_computed_positions_have_no_limit():
    model = confident(**LLAMA, attend=sdpa)
    assert [len(ids) for ids in generate(model, prompts(5, 40), GREEDILY, max_tokens=40)] == [40, 40]


@pytest.mark.parametrize("make", [partial(small_encoder_decoder, **T5_GATED), partial(small_decoder, **LLAMA)])
def test_matrix_products_may_run_in_bf16(make):
    model, several = make().eval(), prompts(5, 1, 12)
    options = {"prompts": several}
    if isinstance(model, EncoderDecoder):
        options = {"prompts": prompts(1, 1, 1), "sources": several}
    with torch.autocast("cpu", torch.bfloat16):
        found = generate(model, **options, sampler=GREEDILY, max_tokens=4)
    assert [len(ids) for ids in found] == [4, 4, 4]

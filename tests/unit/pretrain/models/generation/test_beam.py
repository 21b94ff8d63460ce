"""Laws of beam search: a text alone, what it may not choose, where positions end, what is refused."""

import math

import pytest
import torch
from small_models import BART, VOCAB_SIZE, small_decoder, small_encoder_decoder

from pretrain.models.generation.beam import BeamSearch, beam_search
from pretrain.models.generation.generate import generate
from pretrain.models.generation.rules import NO_RULES, Rules
from pretrain.models.generation.sampling import Sampler


def prompts(*lengths):
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(VOCAB_SIZE, (length,), generator=generator) for length in lengths]


@pytest.fixture(scope="module")
def model():
    return small_decoder(init_std=0.3).eval()


def found(model, several, max_tokens=8, stop_ids=(3,), rules=NO_RULES, **settings):
    search = BeamSearch(**settings)
    return beam_search(model, several, search, max_tokens=max_tokens, stop_ids=stop_ids, rules=rules)


def log_probability(model, prompt, ids):
    """Return the log-probability of a continuation, in float64, from one pass over the whole text."""
    from attention_laws import layout

    text = torch.cat([prompt, torch.tensor(ids)])
    hidden = model(text, torch.arange(len(text)), layout([len(text)]))
    steps = (hidden @ model.head_weight().T).double().log_softmax(dim=-1)[len(prompt) - 1 : -1]
    return steps[torch.arange(len(ids)), ids].sum().item()


def test_beams_of_a_prompt_are_as_if_it_were_alone(model):
    several = prompts(5, 1, 12, 5)
    together = found(model, several, early_stopping="never")
    assert together == [found(model, [prompt], early_stopping="never")[0] for prompt in several]


def test_one_beam_is_greedy_and_more_find_likelier_texts(model):
    several = prompts(5, 1, 12, 5)
    greedy = generate(model, several, Sampler(temperature=0.0), max_tokens=8)
    assert found(model, several, stop_ids=(), beams=1) == greedy
    better = found(model, several, stop_ids=(), beams=8)
    likely = [
        [log_probability(model, prompt, ids) for prompt, ids in zip(several, texts, strict=True)]
        for texts in (greedy, better)
    ]
    assert all(one <= other + 1e-5 for one, other in zip(*likely, strict=True)) and better != greedy


def test_no_ngram_of_prompt_and_text_stands_twice(model):
    prompt = torch.tensor([4, 9, 4, 9, 11])
    for size in (1, 2, 3):
        [ids] = found(model, [prompt], max_tokens=14, no_repeat_ngram=size, stop_ids=())
        text = [*prompt.tolist(), *ids]
        grams = [tuple(text[place : place + size]) for place in range(len(text) - size + 1)]
        new = grams[len(prompt) - size + 1 :]
        assert len(new) == 14 and len(set(new)) == 14
        assert not set(new) & set(grams[: len(prompt) - size + 1])


def test_ends_are_kept_back_and_forced(model):
    several = prompts(5, 2, 30)
    stop_ids = range(0, VOCAB_SIZE, 4)
    assert min(map(len, found(model, several[:2], stop_ids=[3, 8, 9], min_tokens=6))) >= 6
    ids = found(model, several, stop_ids=[8], rules=Rules(last=8, banned=(8,)), max_tokens=6)
    assert [len(text) for text in ids] == [6, 6, 2]  # of 32 positions
    assert [text.index(8) for text in ids] == [5, 5, 1]
    without = found(model, several[:2], rules=Rules(banned=tuple(stop_ids)))
    assert not {token for text in without for token in text} & set(stop_ids)


def test_sources_of_uneven_lengths_are_as_if_each_were_alone():
    model, sources = small_encoder_decoder(**BART, init_std=0.3).eval(), prompts(5, 1, 12)
    start, search = torch.tensor([7]), BeamSearch(beams=3, no_repeat_ngram=2)
    settings = {"max_tokens": 8, "stop_ids": [3]}
    together = beam_search(model, [start] * 3, search, sources=sources, **settings)
    assert together == [beam_search(model, [start], search, sources=[source], **settings)[0] for source in sources]
    assert len(set(map(tuple, together))) > 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beams": 0}, "beams=0: must be at least 1"),
        ({"early_stopping": "soon"}, "early_stopping=soon: must be True, False or 'never'"),
        *(
            ({"length_penalty": one}, "length_penalty=.*: must lie between -50 and 50")
            for one in (51.0, -51.0, math.nan)
        ),
        ({"no_repeat_ngram": -1}, "no_repeat_ngram=-1: must not be negative"),
        ({"beams": 31}, "beams=31: needs 62 candidates, more than the vocabulary of 61"),
    ],
)
def test_refuses_by_name(model, settings, message):
    with pytest.raises(ValueError, match=message):
        found(model, prompts(3), **settings)

"""Greedy decoding and beam search choose the ids that transformers' `generate` does: theirs padded, ours ragged."""

import os
from collections import Counter

import pytest
import torch
from hugging_face_directories import write
from small_models import BART, LLAMA, MARIAN, T5_GATED, small_decoder, small_encoder_decoder
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from pretrain.models.generation.beam import BeamSearch, beam_search
from pretrain.models.generation.generate import generate
from pretrain.models.generation.rules import Rules
from pretrain.models.generation.sampling import Sampler

TEXTS = int(os.environ.get("GENERATION_TEXTS", "24"))  # of each case; more of them are measured now and then
PAD, START = 60, 59
MORE = 14  # tokens at most
GREEDILY = Sampler(temperature=0.0)
KINDS = {
    "bart": (small_encoder_decoder, BART),
    "marian": (small_encoder_decoder, MARIAN),
    "t5": (small_encoder_decoder, T5_GATED),
    "gpt2": (small_decoder, {}),
    "llama": (small_decoder, {**LLAMA, "kv_heads": 2}),
}
SEARCHES = [
    {},
    {"early_stopping": True, "length_penalty": 2.0},
    {"early_stopping": "never", "length_penalty": 0.6, "no_repeat_ngram": 2},
    {"min_tokens": 5, "no_repeat_ngram": 3, "ruled": True},
    {"early_stopping": "never", "length_penalty": -1.0, "beams": 3},
    {"beams": 1, "length_penalty": 0.0},
]
THEIRS = {
    "beams": "num_beams",
    "no_repeat_ngram": "no_repeat_ngram_size",
    "min_tokens": "min_new_tokens",
}


@pytest.fixture(scope="module", params=KINDS)
def both(request, tmp_path_factory):
    """A model whose tokens depend on what came before, ours and theirs, whether it reads sources, and what ends a text.

    That is a token that it writes often.
    """
    make, fields = KINDS[request.param]
    model = make(**fields).eval()
    generator = torch.Generator().manual_seed(11)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(std=0.9 if name.startswith("blocks") else 0.4, generator=generator)
        elif name == "logit_bias":
            parameter.data.normal_(generator=generator)
    directory = write(tmp_path_factory.mktemp("models") / request.param, model)
    reads = make is small_encoder_decoder
    kind = AutoModelForSeq2SeqLM if reads else AutoModelForCausalLM
    free = generate(model, **inputs(reads, texts(TEXTS)), sampler=GREEDILY, max_tokens=MORE)
    [(end, _)] = Counter(token for ids in free for token in {*ids[2:]} - {*ids[:2], 7, PAD}).most_common(1)
    return model, kind.from_pretrained(directory, pad_token_id=PAD).eval(), reads, end


def texts(how_many):
    generator = torch.Generator().manual_seed(how_many)
    lengths = torch.randint(1, 14, (how_many,), generator=generator).tolist()
    return [torch.randint(3, 59, (length,), generator=generator) for length in lengths]


def rules_of(reads, end, ruled):
    """Return rules such as releases have; a first token is theirs to force behind one token alone."""
    return Rules(first=9 if reads else None, last=end, banned=(7, PAD)) if ruled else Rules()


def expected(theirs, reads, several, end, rules, **settings):
    """Return what theirs generates after each of several texts, up to its end."""
    longest = max(map(len, several))
    padding = [torch.full((longest - len(text),), PAD) for text in several]
    sides = zip(several, padding, strict=True) if reads else zip(padding, several, strict=True)
    ids = torch.stack([torch.cat(side) for side in sides])
    found = theirs.generate(
        ids,
        attention_mask=(ids != PAD).long(),
        max_new_tokens=MORE,
        do_sample=False,
        pad_token_id=PAD,
        eos_token_id=end,
        **{"decoder_start_token_id": START} if reads else {},
        bad_words_ids=[[token] for token in rules.banned] or None,
        forced_bos_token_id=rules.first,
        forced_eos_token_id=rules.last,
        **{THEIRS.get(name, name): value for name, value in settings.items()},
    )
    rows = found[:, 1 if reads else longest :].tolist()
    return [ids[: ids.index(end) + 1] if end in ids else ids for ids in rows]


def inputs(reads, several):
    return {"prompts": [torch.tensor([START])] * len(several), "sources": several} if reads else {"prompts": several}


@pytest.mark.parametrize("ruled", [False, True])
def test_the_likeliest_tokens_are_theirs(both, ruled):
    model, theirs, reads, end = both
    several, rules = texts(TEXTS * 5 // 2), rules_of(reads, end, ruled)
    found = generate(model, **inputs(reads, several), sampler=GREEDILY, max_tokens=MORE, stop_ids=[end], rules=rules)
    assert found == expected(theirs, reads, several, end, rules)
    assert len(set(map(len, found))) > 2


@pytest.mark.parametrize("settings", SEARCHES, ids=str)
def test_beams_are_theirs(both, settings):
    model, theirs, reads, end = both
    several = texts(TEXTS)
    together = [several]  # in theirs
    if not reads and "no_repeat_ngram" in settings:  # they count padding as repeated, too: no text may have any
        several = list({len(text): text for text in several}.values())[:6]
        together = [[text] for text in several]
    rules = rules_of(reads, end, settings.get("ruled"))
    settings = {"beams": 4} | {key: value for key, value in settings.items() if key != "ruled"}
    search = BeamSearch(**settings)
    found = beam_search(model, **inputs(reads, several), search=search, max_tokens=MORE, stop_ids=[end], rules=rules)
    assert found == [ids for part in together for ids in expected(theirs, reads, part, end, rules, **settings)]

"""Texts that are written: stop strings, batches of like lengths, blanks, beams, what an encoder-decoder reads."""

import json

import pytest
import torch
from run_directories import TEXTS, word_pieces
from small_models import filled
from tokenizers import Tokenizer
from vocabularies import byte_level

from pretrain.models.attention.sdpa import sdpa
from pretrain.models.decoder import DecoderConfig
from pretrain.models.encoder_decoder import EncoderDecoderConfig
from pretrain.models.generation.beam import BeamSearch, beam_search
from pretrain.models.generation.sampling import Sampler
from pretrain.models.init import Init
from pretrain.trained import generating
from pretrain.trained.generating import StopStrings, Writer, batches

GREEDILY = Sampler(temperature=0.0)


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level(TEXTS)


def small(config=DecoderConfig, vocab_size=72):
    with torch.device("meta"):
        sizes = {"max_seq_len": 32, "width": 24, "layers": 2, "heads": 4, "init": Init.gpt2, "init_std": 0.3}
        model = config(**sizes).build(vocab_size=vocab_size, attend=sdpa)
    return filled(model, seed=1).eval()


def of_words():
    described = json.loads(word_pieces())
    described["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": False}
    return Tokenizer.from_str(json.dumps(described))


@pytest.mark.parametrize("string", ["die €", "€", "\n\n", " of the", "ö", "life, a"])
def test_a_string_is_noticed_with_the_token_that_completes_it(tokenizer, string):
    text = f"a way of life{string}, and so on: {string}!"
    ids, strings = tokenizer.encode(text).ids, StopStrings(tokenizer, ["nothing of the kind", string])
    assert len(tokenizer.encode("ö€").ids) > 3  # characters of several tokens
    first = next(end for end in range(1, len(ids) + 1) if strings.reached(0, ids[:end]))
    assert string in tokenizer.decode(ids[:first])
    assert string not in tokenizer.decode(ids[: first - 1])
    assert strings.cut(tokenizer.decode(ids)) == "a way of life"


def test_a_text_ends_before_the_first_of_its_strings(tokenizer):
    strings = StopStrings(tokenizer, ["b", "a"])
    assert [strings.cut(text) for text in ("cdab", "cdba", "cd", "a")] == ["cd", "cd", "cd", ""]
    assert StopStrings(tokenizer, []).cut("whole") == "whole"


def written(model, tokenizer, prompts, how=GREEDILY, **options):
    start, stop_ids = options.pop("decoder_start", None), options.pop("stop_ids", [])
    writer = Writer(model=model, tokenizer=tokenizer, stop_ids=stop_ids, decoder_start=start)
    options = {"max_tokens": 9, "samples": 1} | options
    strings = StopStrings(tokenizer, options.pop("stop", []))
    return list(writer.texts(prompts, how, strings=strings, **options))


def test_a_stop_string_ends_a_text_and_others_go_on():
    tokenizer, model = of_words(), small()
    prompts = [tokenizer.encode(text, add_special_tokens=False).ids for text in ("the time", "a way of life", "of")]
    free = [text for [text] in written(model, tokenizer, prompts)]
    string = free[1][6:9]
    cut = [text for [text] in written(model, tokenizer, prompts, stop=[string])]
    assert cut == [text.split(string)[0] for text in free]
    assert cut[1] != free[1] and len(set(map(len, cut))) > 1


def test_the_space_before_a_continuation_is_kept():
    tokenizer = of_words()
    drawn = [tokenizer.token_to_id(token) for token in ("world", "the")]
    writer = Writer(model=small(), tokenizer=tokenizer, stop_ids=[], decoder_start=None)
    assert writer._text(tokenizer.encode("people", add_special_tokens=False).ids, drawn) == " world the"


def test_texts_of_like_lengths_are_continued_together(monkeypatch):
    monkeypatch.setattr(generating, "TOKENS_AT_A_TIME", 30)
    assert batches([9, 2, 40, 8, 9, 9, 1], 3) == [[6, 1, 3], [0, 4, 5], [2]]
    assert batches([20, 20, 5], 3) == [[2, 0], [1]]
    assert batches([], 3) == []


def test_sources_are_read_and_beams_are_those_of_the_search():
    tokenizer, model = of_words(), small(EncoderDecoderConfig)
    sources = [tokenizer.encode(text, add_special_tokens=False).ids for text in ("the time", "a way of life", "of")]
    how = BeamSearch(beams=3)
    found = beam_search(
        model, [torch.tensor([5])] * 3, how, max_tokens=9, stop_ids=[7], sources=list(map(torch.tensor, sources))
    )
    expected = [[tokenizer.decode(ids)] for ids in found]
    assert written(model, tokenizer, sources, how, decoder_start=5, stop_ids=[7]) == expected
    assert len(set(map(tuple, found))) > 1

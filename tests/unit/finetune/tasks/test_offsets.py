"""Answers and words under the tokenizers of the most downloaded encoders, beside what normalising prefixes tells."""

import itertools
import re
import unicodedata
from functools import lru_cache

import numpy as np
import pytest
from encoder_tokenizers import KINDS, LETTERS, WORDS
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from finetune.tasks.offsets import tokenized
from finetune.tasks.qa.questions import Answer, Question
from finetune.tasks.qa.spans import candidates
from finetune.tasks.qa.windows import NO_ANSWER, split_into_windows
from finetune.tasks.tokens.alignment import encode_words, first_tokens

BYTE_LEVEL = {"roberta", "roberta_prefixed", "roberta_of_words", "modern_bert", "qwen_embedding"}
KEEP_BLANKS = {*BYTE_LEVEL, "gemma_embedding", "llama"} - {"roberta_of_words"}  # all but spaces

tokenizer_of = lru_cache(lambda kind: KINDS[kind]())

PARTS = st.lists(st.sampled_from(WORDS) | st.text(LETTERS, min_size=1, max_size=5), min_size=1, max_size=9)


@st.composite
def contexts(draw) -> str:
    parts = draw(PARTS)
    return draw(st.sampled_from(["", " ", "\x01", "\u200b"])) + "".join(
        part + draw(st.sampled_from([" ", " ", "", "  ", "\n"])) for part in parts
    )


def visible(text: str, kind: str) -> bytes:
    """What is left of a normalised text without the blanks of its kind."""
    text = text.replace("▁", " ")
    return (text.replace(" ", "") if kind in KEEP_BLANKS else "".join(text.split())).encode()


def size_of(token: str, kind: str) -> int:
    """How many bytes of what is visible a token stands for."""
    if kind in BYTE_LEVEL:
        return len(token.replace("Ġ", ""))
    return 1 if re.fullmatch("<0x..>", token) else len(visible(token.removeprefix("##"), kind))


def holders(kind: str, text: str, tokens: list[str]) -> list[set[int]]:
    """The tokens that hold each character of a text: by how long the normalised text is before it and behind it."""
    normalise = tokenizer_of(kind).normalizer.normalize_str if tokenizer_of(kind).normalizer else str
    sizes = [len(visible(normalise(text[:size]), kind)) for size in range(len(text) + 1)]
    sizes = np.minimum(np.maximum.accumulate(sizes), sizes[-1])
    owners = [token for token, piece in enumerate(tokens) for _ in range(size_of(piece, kind))]
    assert len(owners) == sizes[-1]
    held = [set(owners[start:end]) for start, end in itertools.pairwise(sizes)]
    return [set() if letter.isspace() else found for found, letter in zip(held, text, strict=True)]


def smallest_span(held: list[set[int]], places: list[int]) -> tuple[int, int]:
    """The characters from the first to the last of the shortest span of tokens that holds these places."""
    spans = []
    for first, last in itertools.combinations_with_replacement(sorted(set().union(*held)), 2):
        own = [place for place, found in enumerate(held) if found & {*range(first, last + 1)}]
        if own[0] <= places[0] and places[-1] <= own[-1]:
            spans.append((own[-1] - own[0], own[0], own[-1] + 1))
    return min(spans)[1:]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, derandomize=True)
@given(context=contexts(), data=st.data())
def test_an_answer_is_the_smallest_span_of_tokens_that_covers_it(kind, context, data):
    bases = [
        place for place, letter in enumerate(context) if not letter.isspace() and unicodedata.category(letter)[0] != "M"
    ]
    assume(bases)
    start = data.draw(st.sampled_from(bases))
    end = data.draw(st.sampled_from([*(place for place in bases if place > start), len(context)]))
    end = len(context[:end].rstrip())
    assume(start < end)
    check_answer(kind, context, start, end)


def check_answer(kind, context, start, end):
    one, [sequence], report = encoded_question(tokenizer_of(kind), context, start, end, max_tokens=2000)
    if not one.context.ids:
        assert report.cut == ["q"]
        return
    first, last = (place - one.context_start for place in sequence.label)
    assert sequence.label != NO_ANSWER and 0 <= first <= last < len(one.context.ids)
    found = one.characters(first, last)
    assert report.inexact == ([] if found == (start, end) else ["q"])
    held = holders(kind, context, [tokenizer_of(kind).id_to_token(token) for token in one.context.ids])
    words = [range(*word.span()) for word in re.finditer(r"\S+", context) if any(held[slice(*word.span())])]
    assert all(place in range(*found) for word in words for place in word if start <= place < end), "a lost character"
    if own := [place for place in range(start, end) if held[place]]:
        least = smallest_span(held, own)
        if own[0] == start:
            assert not any(held[found[0] : least[0]]), "it starts earlier than it need"
        if own[-1] == end - 1:
            assert not any(held[least[1] : found[1]]), "it ends later than it need"


def encoded_question(tokenizer, context, start, end, **sizes):
    """A question with an answer, its sequences, and the report on it."""
    asked = [
        Question(id="q", text="red", context=context, answers=(Answer(context[start:end], start),)),
        Question(id="other", text="red", context="red", answers=()),  # a context that has tokens
    ]
    sizes = {"stride": 0, "max_question_tokens": 9} | sizes
    (one, _), sequences, report = split_into_windows(asked, tokenizer, **sizes)
    return one, sequences[:-1], report


EXACT = [
    "…",
    "(1/2)",
    ",",
    "🙂",
    "👩‍👩‍👧",
    "🇩🇪",
    "👧🏽",
    "1",
    "½",
    "㎏",
    "ﬁne",
    "ＦｗＦ",
    "İstanbul",
    "ẞ",
    "don't",
    "Ġorġ",
]
EXACT += [
    "שָׁלוֹם",
    "\u200fשלום\u200f",
    "مرحبّا",
    "ﷺ",
    "が",
    "か\u3099",
    "한국어",
    "東京",
    "e\u0301te\u0301",
    "x\u0315\u0300",
]
EXACT += ["\u200bred\u200b", "red\u200d", "\ufeffred", "\xadred\x01", "\x7ftide", "``1''"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "context",
    [
        "{}",
        "  {} ",
        "red {} stone.\n",
        "\x01red\xa0 {} tide",
        " \x01tide {} \u0301red",
        "red\u200e {} \u200bred",
        "\u200f {} tide \u200b",
        "東 {}, red",
    ],
)
def test_words_of_all_scripts_come_back_to_the_character(kind, context):
    """As the prediction of a model that knows the answer."""
    for word in EXACT:
        text = context.format(word)
        start = text.index(word)
        one, sequences, report = encoded_question(tokenizer_of(kind), text, start, start + len(word), max_tokens=2000)
        logits = np.zeros((len(sequences[0].tokens), 2), np.float32)
        logits[sequences[0].label, [0, 1]] = 9
        [best] = candidates(one, [logits], n_best=1, max_answer_tokens=99).spans
        assert (text[best.start : best.end], best.start, report.inexact) == (word, start, []), text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("context", ["``red''", "tide (red)", "red\x01'' tide"])
def test_signs_around_an_answer_are_not_part_of_it(kind, context):
    start = context.index("red")
    for end in {start + 3, len(context.split("'")[0])} - {len("tide (red)")}:
        one, [sequence], _ = encoded_question(tokenizer_of(kind), context, start, end, max_tokens=200)
        found = one.characters(*(place - one.context_start for place in sequence.label))
        assert context[slice(*found)].rstrip("\x01") == "red"


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_of_which_nothing_is_left_is_the_nearest_token_and_said(kind):
    """Where a tokenizer sees nothing of it between white space; others have tokens for it."""
    for nothing in ("\u200b", "\x01", "\u0301"):
        context = f"tide red {nothing} stone"
        one, [sequence], report = encoded_question(tokenizer_of(kind), context, 9, 10, max_tokens=200)
        first, last = (place - one.context_start for place in sequence.label)
        found = context[slice(*one.characters(first, last))]
        assert sequence.label != NO_ANSWER and set(found.split()) <= {nothing, "red", "stone"}
        assert report.inexact == ([] if found == nothing else ["q"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stride", [0, 7])
def test_an_answer_at_the_border_of_a_window_is_in_it(kind, stride):
    words = ["tide", "👩‍👩‍👧", "e\u0301te\u0301", "שלום", "Ġorġ"] * 12
    context = " ".join(words)
    for word in re.finditer(r"\S+", context):
        one, sequences, report = encoded_question(
            tokenizer_of(kind), context, *word.span(), max_tokens=30, stride=stride
        )
        labels = [(start, sequence.label) for start, sequence in zip(one.starts, sequences, strict=True)]
        spans = [
            one.characters(*(start + place - one.context_start for place in label))
            for start, label in labels
            if label != NO_ANSWER
        ]
        assert len(labels) > 1 and set(spans) <= {word.span()} and bool(spans) == (not report.cut)
        whole = one.context.tokens_of(one.question.answers[0])
        assert bool(spans) == any(
            whole[0] in one.window(start) and whole[-1] in one.window(start) for start in one.starts
        )


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, derandomize=True)
@given(words=st.lists(st.sampled_from(WORDS) | st.text(LETTERS, min_size=1, max_size=5), min_size=1, max_size=9))
def test_each_word_that_tokens_hold_has_its_first_token(kind, words):
    """A token that holds letters of several words, as Llama's may, is the last one's."""
    [encoded] = encode_words(tokenizer_of(kind), [words], 2000)
    text = " ".join(words)
    [whole] = tokenized(tokenizer_of(kind), [text])
    held = holders(kind, text, whole.encoding.tokens)
    ends = [*itertools.accumulate(len(word) + 1 for word in words)]
    word_of = [int(np.searchsorted(ends, place, side="right")) for place in range(len(text))]
    last = {token: word_of[place] for place, found in enumerate(held) for token in sorted(found)}
    expected = {word: min(token for token in last if last[token] == word) for word in set(last.values())}
    if not encoded.sequences:
        assert not expected
        return
    [sequence] = encoded.sequences
    specials = tokenizer_of(kind).num_special_tokens_to_add(False) // 2
    found = dict(zip(*(each.tolist() for each in first_tokens(sequence.words)), strict=True))
    for word, token in expected.items():
        blanks = range(found[word] - specials, token)
        assert sequence.words[token + specials] == word and not any(place in last for place in blanks), text


@pytest.mark.parametrize("unknown", [None, "u"])
@pytest.mark.parametrize("model", [models.BPE, models.WordLevel])
def test_words_of_letters_that_are_not_in_the_vocabulary(model, unknown):
    """BPE leaves such letters out unless it has an unknown token; a model of whole words always has one."""
    vocabulary = {"r": 0, "e": 1, "d": 2, "red": 3, "u": 4, "[UNK]": 5}
    tokenizer = Tokenizer(model(vocabulary, *([[]] if model is models.BPE else []), unk_token=unknown or "[UNK]"))
    if unknown is None and model is models.BPE:
        tokenizer.model.unk_token = None
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    context = "xxred ½ reyd 🙂🙂 d? éd"
    for word in re.finditer(r"\S+", context):
        one, [sequence], report = encoded_question(tokenizer, context, *word.span(), max_tokens=99)
        found = one.characters(*(place - one.context_start for place in sequence.label))
        unseen = model is models.BPE and unknown is None and not set(word[0]) & set(vocabulary)
        assert sequence.label != NO_ANSWER and report.inexact == (["q"] if unseen else [])
        assert unseen or found == word.span()


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_stays_as_it_is(kind):
    before = tokenizer_of(kind).to_str()
    [found] = tokenized(tokenizer_of(kind), ["red stone"])
    assert tokenizer_of(kind).to_str() == before
    assert found.encoding.ids == tokenizer_of(kind).encode("red stone", add_special_tokens=False).ids

"""Windows are those of transformers, labels those of its recipe, and answers come back to the character."""

import itertools
from functools import lru_cache

import numpy as np
import pytest
import vocabularies
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, processors
from transformers import PreTrainedTokenizerFast

from finetune.tasks.qa.questions import Answer, Question
from finetune.tasks.qa.spans import candidates
from finetune.tasks.qa.windows import NO_ANSWER, TokenizedContext, split_into_windows
from pretrain.errors import ConfigError, DataError

WORDS = [
    "answer",
    "answers",
    "longest",
    "them,",
    "In",
    "1874",
    "Zürich",
    "naïve",
    "東京",
    "都",
    "été,",
    "(ab)",
    "don't",
    "🙂",
    "👩‍👩‍👧",
    "—",
    "ﬁn",
    "U.S.",
    "e\u0301a",
    "x\u200b",
]
KINDS = ["word_piece", "byte_level", "bare_byte_level", "unigram"]


@lru_cache
def tokenizer(kind: str) -> Tokenizer:
    texts = [" ".join(WORDS[first:]) for first in range(8)] * 4
    found = vocabularies.KINDS[kind.removeprefix("bare_")](texts)
    ids = found.get_vocab()
    if kind in ("word_piece", "unigram"):
        found.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[(name, ids[name]) for name in ("[CLS]", "[SEP]")],
        )
    elif kind == "byte_level":  # trims the spaces off its offsets
        found.post_processor = processors.RobertaProcessing(("</s>", ids["</s>"]), ("<s>", ids["<s>"]))
    return found


@st.composite
def questions(draw) -> Question:
    """A question with an answer that starts and ends with words."""
    drawn = draw(st.lists(st.sampled_from(WORDS) | st.text("aé東 ", min_size=1, max_size=6), min_size=1, max_size=60))
    context, ends = draw(st.sampled_from(["", " ", "  "])), []
    for word in drawn:
        start = len(context)
        context += word + draw(st.sampled_from([" ", " ", " ", "  ", "\n"]))
        if word.strip():
            ends.append((start + len(word) - len(word.lstrip()), start + len(word.rstrip())))
    if not ends:
        context, ends = "a", [(0, 1)]
    first = draw(st.integers(0, len(ends) - 1))
    last = draw(st.integers(first, min(first + 8, len(ends) - 1)))
    start, end = ends[first][0], ends[last][1]
    text = " ".join(draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=9)))
    return Question(id="q", text=text, context=context, answers=(Answer(context[start:end], start),))


def ideal(one, sequences) -> list[np.ndarray]:
    """Logits of a model that knows the labels."""
    logits = [np.zeros((len(sequence.tokens), 2), np.float32) for sequence in sequences]
    for rows, sequence in zip(logits, sequences, strict=True):
        rows[sequence.label[0], 0] += 9
        rows[sequence.label[1], 1] += 9
    return logits


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150)
@given(question=questions(), room=st.integers(4, 40), stride=st.integers(0, 12))
def test_every_answer_comes_back_exactly_or_is_counted(kind, question, room, stride):
    vocabulary = tokenizer(kind)
    limit = 12 + 4 + max(room, stride + 1)
    [one], sequences, losses = split_into_windows(
        [question], vocabulary, max_tokens=limit, stride=stride, max_question_tokens=12
    )
    [answer] = question.answers
    tokens = range(len(one.context.ids))
    windows = [one.window(start) for start in one.starts]
    assert [token for window in windows for token in window if token >= window.start + (stride if window.start else 0)]
    assert {token for window in windows for token in window} == set(tokens)
    starts, ends = one.context.offsets.T.tolist()
    covering = [
        (ends[last] - starts[first], first, last)
        for first in tokens
        for last in tokens[first:]
        if starts[first] <= answer.start and ends[last] >= answer.end
    ]
    least = [span[1:] for span in covering if span[0] == min(covering)[0]]
    first, last = min(least)[0], max(last for _, last in least)
    held = any(first in window and last in window for window in windows)
    characters = one.characters(first, last)
    assert losses.cut == ([] if held else ["q"])
    assert losses.inexact == (["q"] if held and characters != (answer.start, answer.end) else [])
    if held:
        [best] = candidates(one, ideal(one, sequences), n_best=1, max_answer_tokens=500).spans
        assert best == (*characters, 18)
        exact = any(one.characters(*span) == (answer.start, answer.end) for span in itertools.combinations(tokens, 2))
        assert not exact or question.context[best.start : best.end] == answer.text


@settings(max_examples=150, derandomize=True)
@given(steps=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4)), min_size=1, max_size=8), data=st.data())
def test_no_other_tokens_hold_an_answer_with_fewer_characters(steps, data):
    """Of tokens that overlap, too, as bytes of several characters may; beside all spans of tokens."""
    starts = np.cumsum([step for step, _ in steps])
    ends = np.maximum.accumulate(starts + [size for _, size in steps])
    held = [place for place in range(ends[-1]) if ((starts <= place) & (place < ends)).any()]
    first, last = sorted(data.draw(st.tuples(st.sampled_from(held), st.sampled_from(held))))
    context = TokenizedContext([0] * len(starts), np.stack([starts, ends], axis=1))
    found = context.tokens_of(Answer("x" * (last + 1 - first), first))
    spans = itertools.combinations_with_replacement(range(len(starts)), 2)
    covering = [ends[j] - starts[i] for i, j in spans if starts[i] <= first and last < ends[j]]
    assert starts[found[0]] <= first and last < ends[found[-1]]
    assert ends[found[-1]] - starts[found[0]] == min(covering)


def recipe(question: Question, fast: PreTrainedTokenizerFast, limit: int, stride: int):
    """Windows, types and labels as the field's recipe for training has them."""
    [answer] = question.answers
    windows = fast(
        question.text,
        question.context,
        truncation="only_second",
        max_length=limit,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_token_type_ids=True,
    )
    for index, offsets in enumerate(windows["offset_mapping"]):
        owners = windows.sequence_ids(index)
        places = [place for place, owner in enumerate(owners) if owner == 1]
        label = [0, 0]
        if places:
            first, last = places[0], places[-1]
            if offsets[first][0] <= answer.start and offsets[last][1] >= answer.end:
                while first < len(offsets) and owners[first] == 1 and offsets[first][0] <= answer.start:
                    first += 1
                while owners[last] == 1 and offsets[last][1] >= answer.end:
                    last -= 1
                label = [first - 1, last + 1]
        yield windows["input_ids"][index], windows["token_type_ids"][index], label


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150)
@given(question=questions(), room=st.integers(4, 40), stride=st.integers(0, 12))
def test_windows_and_labels_are_those_of_the_recipe(kind, question, room, stride):
    """Where several tokens share an answer's first character, the recipe starts with the last of them; ours does not.

    It ends with the first that has the last character, too: for a character of three tokens that is before its start.
    """
    vocabulary = tokenizer(kind)
    limit = len(vocabulary.encode(question.text).ids) + 4 + max(room, stride + 1)
    _, sequences, _ = split_into_windows(
        [question], vocabulary, max_tokens=limit, stride=stride, max_question_tokens=limit - stride - 5
    )
    starts, ends = np.array(vocabulary.encode(question.context, add_special_tokens=False).offsets).T
    [answer] = question.answers
    assume(all(sum((starts <= place) & (place < ends)) == 1 for place in (answer.start, answer.end - 1)))
    theirs = list(recipe(question, PreTrainedTokenizerFast(tokenizer_object=vocabulary), limit, stride))
    assert [(list(one.tokens), one.segments, one.label) for one in sequences] == theirs


def test_questions_share_contexts_and_have_windows_of_their_own():
    context = " ".join(WORDS * 3)
    some = [
        Question(id=f"{words}", text="of " * words, context=context, answers=(Answer("In", 0),)) for words in (1, 3, 9)
    ]
    together, sequences, losses = split_into_windows(
        some, tokenizer("word_piece"), max_tokens=30, stride=4, max_question_tokens=5
    )
    assert losses.shortened == ["9"]
    assert [one.context_start for one in together] == [3, 5, 7]
    assert together[0].context is together[2].context
    alone = [
        sequence
        for one in some
        for sequence in split_into_windows(
            [one], tokenizer("word_piece"), max_tokens=30, stride=4, max_question_tokens=5
        )[1]
    ]
    assert sequences == alone
    assert max(len(sequence.tokens) for sequence in sequences) == 30


def test_an_answer_that_no_window_holds_is_cut_and_labelled_as_none():
    context = "a " * 30
    question = Question(id="q", text="of", context=context, answers=(Answer(context[10:40].strip(), 10),))
    [one], sequences, losses = split_into_windows(
        [question], tokenizer("word_piece"), max_tokens=16, stride=3, max_question_tokens=4
    )
    assert len(one.starts) > 2 and losses.cut == ["q"]
    assert all(sequence.label == NO_ANSWER for sequence in sequences)


def test_labels_are_there_where_answers_are_known():
    for answers, labels in ((None, None), ((), NO_ANSWER)):
        question = Question(id="q", text="of", context="a U.S. answer", answers=answers)
        _, [sequence], losses = split_into_windows(
            [question], tokenizer("unigram"), max_tokens=60, stride=4, max_question_tokens=9
        )
        assert sequence.label == labels and not losses.cut


def test_a_stride_that_leaves_no_room_is_refused():
    question = Question(id="q", text="of", context="a", answers=())
    with pytest.raises(ConfigError, match=r"task.stride=8: must be below 8"):
        split_into_windows([question], tokenizer("word_piece"), max_tokens=20, stride=8, max_question_tokens=9)


def test_texts_without_tokens():
    letters = Tokenizer(models.BPE({"A": 0, "C": 1}, []))  # which leaves out all others
    strange = Question(id="strange", text="a", context="b", answers=(Answer("b", 0),))
    asked = Question(id="asked", text="A", context="b", answers=(Answer("b", 0),))
    known = Question(id="known", text="A", context="C", answers=(Answer("C", 0),))
    sizes = {"max_tokens": 20, "stride": 8, "max_question_tokens": 9}
    with pytest.raises(DataError, match="makes no tokens of these questions"):
        split_into_windows([strange, asked], letters, **sizes)
    with pytest.raises(DataError, match="'strange': the tokenizer makes no tokens of its text; leave it out"):
        split_into_windows([known, strange], letters, **sizes)
    (one, _), sequences, losses = split_into_windows([asked, known], letters, **sizes)
    assert losses.cut == ["asked"] and [list(sequence.tokens) for sequence in sequences] == [[0], [0, 1]]
    assert candidates(one, [np.ones((1, 2), np.float32)], n_best=5, max_answer_tokens=3) == ([], 2.0)

"""The best spans are those that a search over all spans finds; no answer is scored as the field does it."""

import numpy as np
import vocabularies
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from finetune.tasks.qa.questions import Question
from finetune.tasks.qa.spans import best_spans, candidates
from finetune.tasks.qa.windows import WindowedQuestion, split_into_windows

CONTEXT = "the cat sat on the mat in the old hall"  # 10 words


def windowed(*, max_tokens: int, stride: int) -> tuple[WindowedQuestion, list[int]]:
    """A question of one token about ten words, and the tokens of its windows."""
    words = ["who", *dict.fromkeys(CONTEXT.split())]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="who"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    question = Question(id="q7", text="who", context=CONTEXT, answers=None)
    [one], sequences, _ = split_into_windows(
        [question], tokenizer, max_tokens=max_tokens, stride=stride, max_question_tokens=1
    )
    return one, [len(sequence.tokens) for sequence in sequences]


@given(
    length=st.integers(0, 40),
    n_best=st.integers(1, 30),
    longest=st.integers(1, 50),
    seed=st.integers(0, 2**32 - 1),
    levels=st.sampled_from([3, 10**6]),  # few levels: many spans have the same score
)
def test_best_spans_are_those_of_a_search_over_all(length, n_best, longest, seed, levels):
    starts, ends = np.random.default_rng(seed).integers(0, levels, (2, length)).astype(float)
    every = [
        (first, last, starts[first] + ends[last])
        for first in range(length)
        for last in range(first, min(first + longest, length))
    ]
    first, last, scores = best_spans(starts, ends, n_best=n_best, longest=longest)
    assert scores.tolist() == sorted((score for *_, score in every), reverse=True)[:n_best]
    found = list(zip(first.tolist(), last.tolist(), scores.tolist(), strict=True))
    assert set(found) <= set(every) and len(set(found)) == len(found)


@settings(max_examples=50)
@given(
    room=st.integers(4, 12),
    stride=st.integers(0, 3),
    n_best=st.integers(1, 60),
    longest=st.integers(1, 12),
    seed=st.integers(0, 2**32 - 1),
)
def test_candidates_are_those_of_a_search_over_all_windows(room, stride, n_best, longest, seed):
    one, lengths = windowed(max_tokens=room + 1, stride=stride)
    draw = np.random.default_rng(seed)
    logits = [draw.normal(size=(length, 2)).astype(np.float32) for length in lengths]
    best: dict[tuple[int, int], float] = {}
    for begin, rows in zip(range(0, 10, room - stride), logits, strict=False):
        for first in range(1, len(rows)):
            for last in range(first, min(first + longest, len(rows))):
                words = CONTEXT.split()
                start = len(" ".join([*words[: begin + first - 1], ""]))
                span = start, start + len(" ".join(words[begin + first - 1 : begin + last]))
                best[span] = max(best.get(span, -np.inf), float(rows[first, 0]) + float(rows[last, 1]))
    found = candidates(one, logits, n_best=n_best, max_answer_tokens=longest)
    assert {span[:2]: span.score for span in found.spans} == dict(
        sorted(best.items(), key=lambda item: -item[1])[:n_best]
    )
    assert [span.score for span in found.spans] == sorted((span.score for span in found.spans), reverse=True)
    assert found.no_answer == min(float(rows[0, 0]) + float(rows[0, 1]) for rows in logits)


def test_no_answer_is_the_least_over_windows():
    one, lengths = windowed(max_tokens=7, stride=2)
    assert lengths == [7, 7]
    logits = [np.zeros((7, 2), np.float32), np.zeros((7, 2), np.float32)]
    logits[0][0] = 3, 1.5
    logits[1][0] = -2, 5
    logits[1][6] = 4, 4
    logits[0][1, 0], logits[0][0, 1] = 1, 99  # an end in the question ends no answer
    found = candidates(one, logits, n_best=2, max_answer_tokens=3)
    assert found.no_answer == 3
    assert found.spans[0] == (CONTEXT.index("hall"), len(CONTEXT), 8)
    assert CONTEXT[found.spans[1].start : found.spans[1].end] in ("hall", "old hall", "the old hall")


def test_white_space_is_no_answer():
    tokenizer = vocabularies.byte_level(["a b"] * 9)
    question = Question(id="q", text="a", context="a   b", answers=None)
    [one], [sequence], _ = split_into_windows([question], tokenizer, max_tokens=20, stride=2, max_question_tokens=2)
    assert len(sequence.tokens) == 5  # the question, "a", two spaces, " b"
    logits = np.zeros((5, 2), np.float32)
    logits[2:4] = 9
    found = candidates(one, [logits], n_best=20, max_answer_tokens=4)
    assert {span[:2]: span.score for span in found.spans} == {(0, 1): 9, (4, 5): 9, (0, 5): 0}

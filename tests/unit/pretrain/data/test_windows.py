"""Windows: long documents in overlapping windows with templates, compared with documents cut token by token."""

import itertools
import random
from collections import Counter

import numpy as np
import pytest
from corpora import write_corpus
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pretrain.data.batch import IGNORED, Inputs, Slots
from pretrain.data.corpus import Corpus
from pretrain.data.course import Course
from pretrain.data.loader import DataConfig, StepLoader, evaluation_batches
from pretrain.data.packing import Packing, WholeDocuments, pack
from pretrain.data.sources.base import PreparedSource
from pretrain.data.stream import HeldOut, PackedSource
from pretrain.errors import ConfigError

Template = tuple[list[int], list[int]]
Sequence = list[tuple[int, int]]  # each token with the id that it learns to predict
TEMPLATES: list[Template] = [
    ([], []),
    ([7], []),
    ([], [9]),
    ([8], [9]),
    ([7, 8], [9]),
    ([8], [9, 10]),
    ([7, 8], [9, 10]),
]


def slow_windows(content: list[int], template: Template, seq_len: int, stride: int) -> list[Sequence]:
    """Cut one document: each window goes on as far as it can, the next begins `stride` tokens before its end.

    A token of the text learns what follows it in the document, in the first window that has it.
    """
    prefix, suffix = template
    room = seq_len - len(prefix) - len(suffix)
    after = prefix[0] if prefix and not suffix else IGNORED
    row = [*prefix, *content, *suffix]
    followers = [*row[1:], after]
    windows, begin, learnt = [], 0, 0  # `learnt`: tokens of the text before this are some earlier window's
    while True:
        end = min(begin + room, len(content))
        first, last = begin == 0, end == len(content)
        window = [(token, followers[place] if first else IGNORED) for place, token in enumerate(prefix)]
        for place in range(begin, end):
            window.append((content[place], followers[len(prefix) + place] if place >= learnt else IGNORED))
        for place, token in enumerate(suffix, start=len(prefix) + len(content)):
            window.append((token, followers[place] if last else IGNORED))
        windows.append(window)
        if last:
            return windows
        learnt, begin = end, end - stride


def sequences(slots: Slots) -> list[Sequence]:
    pairs = list(zip(slots.tokens.tolist(), slots.following.tolist(), strict=True))
    return [pairs[a:b] for a, b in itertools.pairwise(slots.offsets.tolist())]


@given(
    st.lists(st.integers(0, 70), min_size=1, max_size=25),
    st.sampled_from(TEMPLATES),
    st.integers(1, 20),
    st.integers(0, 19),
    st.integers(1, 9),
)
@example([12, 13, 11, 0, 24], ([8], [9]), 12, 0, 3)  # exactly a window, one token more, one less, none, two windows
@example([0, 0], ([7], []), 5, 4, 1)
@settings(max_examples=30)
def test_windows_are_those_of_the_slow_method(tmp_path_factory, lengths, template, room, stride, per_batch):
    stride = min(stride, room - 1)
    seq_len = room + len(template[0]) + len(template[1])
    numbers = itertools.count(100)
    texts = [[next(numbers) for _ in range(length)] for length in lengths]  # no token twice: places can be told
    rows = [[*template[0], *text, *template[1]] for text in texts]
    directory = tmp_path_factory.mktemp("corpus") / "c"
    write_corpus(directory, [], rows, prefix=template[0], suffix=template[1], per_shard=17, per_batch=per_batch)
    expected = [
        window
        for text, row in zip(texts, rows, strict=True)
        if row
        for window in slow_windows(text, template, seq_len, stride)
    ]

    cut = {"seq_len": seq_len, "packing": Packing.windows, "stride": stride, "partial": True}
    source = PackedSource.open("only", directory, "validation", **cut)
    held_out = HeldOut([source], isolate=True)
    read = [held_out.slots(np.array([number])) for number in range(held_out.num_slots)]
    assert sorted(itertools.chain(*map(sequences, read))) == sorted(expected)

    assert all(0 < len(slots.tokens) <= seq_len for slots in read)
    found = [[token for token, _ in window] for slots in read for window in sequences(slots)]
    before, after = len(template[0]), len(template[1])
    for window in found:
        assert window[:before] == template[0] and window[len(window) - after :] == template[1]
    inner = [window[before : len(window) - after] for window in found]
    assert set(itertools.chain(*inner)) == set(itertools.chain(*texts)), "every token is somewhere"
    seen = Counter(itertools.chain(*inner))
    further = sum(max(0, -(-(length - room) // (room - stride))) for length in lengths)
    assert sum(seen.values()) - sum(lengths) == further * stride, "neighbours share exactly the stride"
    targets = [pair for slots in read for window in sequences(slots) for pair in window if pair[1] != IGNORED]
    assert len(targets) == held_out.num_targets
    by_text = Counter(pair for pair in targets if pair[0] >= 100)
    assert set(by_text.values()) <= {1}, "what follows a token is learnt once"

    if not read:
        return
    together = held_out.slots(np.arange(held_out.num_slots))
    assert sequences(together) == list(itertools.chain(*map(sequences, read)))
    backwards = held_out.slots(np.arange(held_out.num_slots)[::-1])
    assert sequences(backwards) == list(itertools.chain(*map(sequences, read[::-1])))


def test_windows_by_hand():
    """Slots of 8, template of 1 and 1, stride 2: the text 100..108 is cut at 6 and again 4 further."""
    windows = slow_windows(list(range(100, 109)), ([8], [9]), 8, 2)
    assert windows == [
        [(8, 100), (100, 101), (101, 102), (102, 103), (103, 104), (104, 105), (105, 106), (9, IGNORED)],
        [(8, IGNORED), (104, IGNORED), (105, IGNORED), (106, 107), (107, 108), (108, 9), (9, IGNORED)],
    ]


@given(st.lists(st.integers(0, 16), min_size=1, max_size=80))
@settings(max_examples=50)
def test_without_long_documents_they_are_best_fit(lengths):
    """Nothing is cut, so both place the same documents in the same slots."""
    sizes = np.array(lengths)
    best, windows = WholeDocuments(sizes, 16), WholeDocuments(sizes, 16, before=1, after=1, stride=3)
    assert windows.num_slots == best.num_slots
    numbers = np.arange(best.num_slots)
    for one, other in zip(best.chunks(numbers), windows.chunks(numbers), strict=True):
        assert one.tolist() == other.tolist() and one.dtype == other.dtype


def test_slots_are_filled_as_best_fit_fills_them():
    draw = random.Random(4)
    lengths = np.array([draw.randrange(2, 300) for _ in range(400)])
    windows = WholeDocuments(lengths, 64, before=1, after=1, stride=10)
    chunks = windows.chunks(np.arange(windows.num_slots))
    total = int(chunks.lengths.sum())
    assert total > lengths.sum() + 10 * np.count_nonzero(lengths > 64)
    assert windows.num_slots <= 1.03 * total / 64


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seq_len": 2}, r"data\.seq_len=2: must be above 2, the ids around a document"),
        ({"seq_len": 16, "stride": 14}, r"data\.stride=14: must be below 14: data\.seq_len=16 without the 2 ids"),
        ({"seq_len": 16, "stride": 40}, r"data\.stride=40: must be below 14"),
    ],
)
def test_windows_without_room_are_refused(tmp_path, values, message):
    corpus = Corpus.open(write_corpus(tmp_path / "c", [[8, 100, 9]], prefix=[8], suffix=[9]), "train")
    with pytest.raises(ConfigError, match=message):
        pack(Packing.windows, corpus, **values, partial=False)
    pack(Packing.windows, corpus, 16, stride=13, partial=False)


def causal(slots: Slots) -> Inputs:
    return Inputs(slots.tokens, slots.following, slots.offsets)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_any_number_of_ranks_reads_the_same_windows(tmp_path, world_size):
    draw = random.Random(world_size)
    corpora = {}
    for name in ("one", "two"):
        rows = [[8, *draw.choices(range(100, 900), k=draw.randrange(0, 60)), 9] for _ in range(70)]
        corpora[name] = write_corpus(tmp_path / name, rows, rows[:21], prefix=[8], suffix=[9], per_batch=9)
    sources = {name: PreparedSource(path=str(path)) for name, path in corpora.items()}
    cfg = DataConfig(seq_len=16, packing=Packing.windows, stride=4, sources=sources)
    stream, held_out = cfg.train_stream(corpora, seed=3), cfg.held_out(corpora)
    assert stream.fingerprint["data.stride"] == 4
    apart = DataConfig(seq_len=16, packing=Packing.windows, sources=sources).held_out(corpora)
    assert held_out.num_targets == apart.num_targets and held_out.num_slots > apart.num_slots
    size = {"course": Course.constant(6), "world_size": world_size, "num_steps": 40, "pin": False}
    shares = []
    for rank in range(world_size):
        with StepLoader(stream, causal, rank=rank, micro_batch_size=1, start_step=30, **size) as steps:
            shares.append([[batch.tokens.tolist() for batch in step] for step in steps])
    for step, numbers in enumerate(np.arange(180, 240).reshape(10, 6)):
        tokens = itertools.chain(*(batch for share in shares for batch in share[step]))
        assert list(tokens) == stream.slots(numbers).tokens.tolist()
    counts = [
        sum(batch.num_targets for batch in evaluation_batches(held_out, causal, micro_batch_size=4, **place))
        for place in ({"rank": rank, "world_size": world_size} for rank in range(world_size))
    ]
    assert sum(counts) == held_out.num_targets

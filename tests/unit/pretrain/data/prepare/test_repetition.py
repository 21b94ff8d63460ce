"""Documents that repeat themselves, against a loop over all n-grams, and in whole preparations."""

import random
from collections import Counter

import numpy as np
import pytest
from preparing import config, contents, rows, story

from pretrain.data.manifest import Manifest
from pretrain.data.prepare import repetition
from pretrain.data.prepare.build import prepare
from pretrain.data.prepare.repetition import repetitive, without_repetition
from pretrain.data.sources.base import Cut, TextSource
from pretrain.errors import ConfigError, DataError
from pretrain.tokenizer.bpe import BpeTokenizer


def repeats(document: list[int], most: int) -> bool:
    """Look at every n-gram of every place, and count how often it stands there in a row."""
    for n in range(1, 14):
        for start in range(len(document) - n + 1):
            gram, times = document[start : start + n], 1
            while document[start + times * n : start + (times + 1) * n] == gram:
                times += 1
            if times >= most:
                return True
    return False


def drawn(seed: int, most: int) -> list[list[int]]:
    """Return documents of few ids, some with an n-gram planted close to `most` times, at their ends too."""
    draw = random.Random(seed)
    documents = []
    for _ in range(60):
        text = draw.choices(range(draw.choice([2, 3, 9, 500])), k=draw.randint(0, 60))
        if draw.random() < 0.6:
            n, times = draw.randint(1, 15), most + draw.choice([-1, -1, 0, 1])
            planted = draw.choices(range(500), k=n) * times + [7] * draw.choice([0, 0, 1])
            at = draw.choice([0, len(text), draw.randint(0, len(text))])
            text[at:at] = planted[draw.choice([0, 0, 1]) :]
        documents.append(text)
    return documents


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("most", [2, 3, 7, 32])
def test_documents_are_judged_as_by_a_loop(seed, most):
    documents = drawn(seed, most)
    expected = [repeats(document, most) for document in documents]
    found = repetitive([np.array(document, dtype=np.uint32) for document in documents], most)
    assert found.tolist() == expected and len(set(expected)) == 2


@pytest.mark.parametrize("n", [1, 2, 5, 13])
@pytest.mark.parametrize(("before", "after"), [(0, 0), (3, 0), (0, 4), (2, 2)])
def test_the_edge_is_exact_anywhere_in_a_document(n, before, after):
    gram = list(range(10, 10 + n))
    around = [list(range(100, 100 + before)), list(range(200, 200 + after))]
    documents = [around[0] + gram * times + around[1] for times in (31, 32, 33)]
    documents.insert(1, around[0] + (gram * 32)[:-1] + around[1])
    found = repetitive([np.array(document, dtype=np.uint32) for document in documents], 32)
    assert found.tolist() == [False, False, True, True]


def test_longer_n_grams_do_not_count():
    assert not repetitive([np.tile(np.arange(14, dtype=np.uint32), 40)], 32).any()


@pytest.mark.parametrize("n", [1, 2, 13])
def test_what_is_repeated_across_documents_is_no_repeat(n):
    gram, other = np.tile(np.arange(n), 20), np.arange(100, 100 + 32 * n)
    documents = [np.append(other, gram), np.append(gram, other), np.empty(0, dtype=int), np.tile(np.arange(n), 31)]
    assert not repetitive(documents, 32).any()


def test_templates_are_not_looked_at_and_the_rest_keeps_its_order(monkeypatch):
    monkeypatch.setattr(repetition, "TOGETHER", 50)  # several stretches
    counts = Counter(empty=2)
    documents = [[0, *[number] * (5 + number % 4), 9, 9] for number in range(3, 40)]
    kept = without_repetition(
        ((number, np.array(ids)) for number, ids in enumerate(documents)), 8, before=1, after=2, counts=counts
    )
    assert [(number, ids.tolist()) for number, ids in kept] == [
        (number, ids) for number, ids in enumerate(documents) if len(ids) < 8 + 3
    ]
    assert counts == {"empty": 2, "repetitive": sum(len(ids) >= 8 + 3 for ids in documents)}


@pytest.fixture
def texts(tmp_path):
    """Stories, every fifth with a line of dashes that no tokenizer makes short."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(25):
        planted = " zx qv" * 900 if number % 5 == 2 else ""
        (folder / f"{number:02d}.txt").write_text(story(number, 300) + planted)
    return TextSource(paths=[f"{folder}/*.txt"])


TOKENIZER = BpeTokenizer(vocab_size=300)


def test_a_corpus_leaves_them_out_and_counts_them_whatever_the_workers(texts, tmp_path):
    [plain] = prepare({"t": texts}, TOKENIZER, config(tmp_path / "plain")).values()
    [kept] = prepare({"t": texts}, TOKENIZER, config(tmp_path / "one", max_repeats=32)).values()
    found = {split: rows(plain, split) for split in ("train", "validation")}
    expected = {split: [row for row in documents if not repeats(row, 32)] for split, documents in found.items()}
    assert {split: rows(kept, split) for split in expected} == expected
    number = sum(map(len, found.values())) - sum(map(len, expected.values()))
    assert Manifest.load(kept).skipped == {"repetitive": number} and number >= 5
    assert list(Manifest.load(plain).skipped) == []
    more = config(tmp_path / "two", max_repeats=32, workers=2)
    prepare({"t": texts}, TOKENIZER, more)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_another_bound_is_another_corpus_with_the_same_tokenizer(texts, tmp_path):
    prepared = [
        prepare({"t": texts}, TOKENIZER, config(tmp_path, max_repeats=most))["t"] for most in (None, 32, 10_000)
    ]
    assert len(set(prepared)) == 3
    assert len(list(tmp_path.glob("tokenizer-*.json"))) == 1
    prints = [Manifest.load(directory).fingerprint for directory in prepared]
    assert prints[0] == prints[2] != prints[1], "a bound that leaves nothing out changes no id"


def test_a_bound_that_leaves_nothing_is_refused_with_the_count(tmp_path):
    (tmp_path / "dashes.txt").write_text("\n".join(f"{letter}b " * 400 for letter in "aceghjkmn"))
    source = TextSource(paths=[str(tmp_path / "dashes.txt")], documents=Cut.line)
    with pytest.raises(DataError) as error:
        prepare({"t": source}, BpeTokenizer(vocab_size=260), config(tmp_path, held_out=0.0, max_repeats=32))
    for words in ("data.sources.t: no text in it", "repetitive 9", "data.prepare.max_repeats=32"):
        assert words in str(error.value)


@pytest.mark.parametrize("most", [-1, 0, 1])
def test_a_bound_below_two_is_refused(tmp_path, most):
    with pytest.raises(ConfigError, match=f"data.prepare.max_repeats={most}: "):
        config(tmp_path, max_repeats=most)

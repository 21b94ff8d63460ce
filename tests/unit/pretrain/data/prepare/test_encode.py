"""What a tokenizer is trained on: the first bytes of the training documents of each unit, and nothing held out."""

import hashlib
from types import SimpleNamespace

import pytest

from pretrain.data.prepare import encode
from pretrain.data.prepare.cache_key import SourceInputs
from pretrain.data.prepare.config import PrepareConfig
from pretrain.data.prepare.encode import train_tokenizer
from pretrain.data.prepare.survey import Least
from pretrain.data.sources.base import FileRange
from pretrain.data.sources.documents import OnInvalid


class Lists:
    """A source whose units are lists of documents."""

    in_parts = False

    def __init__(self, *units):
        self.lists = units

    def units(self, inputs, unit_bytes):
        return [[FileRange("", number, None)] for number in range(len(self.lists))]

    def texts(self, unit, problems):
        return iter(self.lists[unit[0].start])


def held_out(text, fraction):
    digest = hashlib.blake2b(text.encode(), digest_size=8, key=b"headwater held-out").digest()
    return int.from_bytes(digest, "big") / 2**64 < fraction


@pytest.fixture
def seen(monkeypatch):
    """Return the documents that a tokenizer sees of sources."""
    for name in ("TOKENIZERS_PARALLELISM", "RAYON_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # so that what training sets does not stay
    monkeypatch.setattr(encode, "watched", lambda texts: texts)

    def call(sources, *, train_bytes, fraction):
        found = []
        tokenizer = SimpleNamespace(train_bytes=train_bytes, train=lambda texts: found.extend(texts) or "json")
        readable = {name: SourceInputs(source, []) for name, source in sources.items()}
        cfg = PrepareConfig(unit_bytes=1, held_out=fraction, on_invalid=OnInvalid.skip)
        assert train_tokenizer(tokenizer, readable, cfg, Least(), threads=1) == "json"
        return found

    return call


def test_no_document_that_is_held_out_is_seen(seen):
    texts = [f"document {number}" for number in range(100)]
    found = seen({"one": Lists(texts)}, train_bytes=10**6, fraction=0.3)
    assert found == [text for text in texts if not held_out(text, 0.3)]
    assert 55 < len(found) < 85


def test_units_share_the_bytes_alike_whatever_source_they_are_of(seen):
    def texts(name, number):
        return [f"{name} {each}: é" for each in range(number)]

    sources = {"b": Lists(texts("b0", 9), texts("b1", 1)), "a": Lists(texts("a0", 9))}
    found = seen(sources, train_bytes=3 * 23 + 2, fraction=0.0)
    # Of eight bytes a document two fit 23, and the third is cut in the middle of its last letter, which is left out.
    assert found == [f"{name} {each}" for name in ("a0", "b0") for each in ("0: é", "1: é", "2: ")] + ["b1 0: é"]

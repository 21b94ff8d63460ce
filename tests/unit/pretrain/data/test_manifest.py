"""The manifest: what is written is read, damage is refused, and the fingerprint sees what training sees."""

import copy

import pytest
from corpora import edit_json

from pretrain.data.manifest import FORMAT, Manifest, Shard, Split
from pretrain.errors import DataError


def manifest() -> Manifest:
    shards = [
        Shard(
            file=f"train-{number:05d}.arrow", documents=3, tokens=50, text_bytes=200, size=999, sha256=f"{number:064x}"
        )
        for number in range(2)
    ]
    held_out = Shard(file="validation-00000.arrow", documents=1, tokens=5, text_bytes=9, size=99, sha256="f" * 64)
    return Manifest(
        source={"choice": "text", "paths": ["a.txt"]},
        dtype="uint16",
        vocab_size=300,
        tokenizer_sha256="a" * 64,
        prefix=[0],
        suffix=[],
        splits={"train": Split(shards=shards), "validation": Split(shards=[held_out])},
        skipped={"empty": 2},
        versions={"python": "3.11"},
    )


def test_what_is_saved_is_loaded(tmp_path):
    manifest().save(tmp_path)
    loaded = Manifest.load(tmp_path)
    assert loaded == manifest()
    assert loaded.fingerprint == manifest().fingerprint
    train = loaded.splits["train"]
    assert (train.documents, train.tokens, train.text_bytes) == (6, 100, 400)


def test_a_manifest_from_before_masks_were_named_is_one_that_names_none(tmp_path):
    manifest().save(tmp_path)
    edit_json(tmp_path / "manifest.json", lambda raw: raw.pop("mask"))
    assert Manifest.load(tmp_path) == manifest()


def swap_shards(changed):
    changed.splits["train"].shards.reverse()


def alter_shard(changed):
    changed.splits["validation"].shards[0].sha256 = "e" * 64


SEEN = {
    "order of shards": swap_shards,
    "bytes of a shard": alter_shard,
    "tokenizer": lambda changed: setattr(changed, "tokenizer_sha256", "b" * 64),
    "template": lambda changed: setattr(changed, "prefix", [1]),
    "mask": lambda changed: setattr(changed, "mask", 4),
    "dtype": lambda changed: setattr(changed, "dtype", "uint32"),
}


@pytest.mark.parametrize("what", SEEN)
def test_the_fingerprint_sees_what_training_sees(what):
    changed = manifest()
    SEEN[what](changed)
    assert changed.fingerprint != manifest().fingerprint


def test_the_fingerprint_sees_nothing_else():
    changed = copy.deepcopy(manifest())
    changed.source, changed.skipped, changed.versions = {}, {}, {}
    assert changed.fingerprint == manifest().fingerprint


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format": 1}', '{"format": 1, "splits": []}', "null"])
def test_a_torn_manifest_is_refused(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(DataError, match=r"manifest\.json: not a corpus manifest"):
        Manifest.load(tmp_path)


def test_a_missing_one_and_one_from_the_future_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"manifest\.json: not there; .* is not a prepared corpus"):
        Manifest.load(tmp_path)
    manifest().save(tmp_path)
    edit_json(tmp_path / "manifest.json", lambda raw: raw.update(format=FORMAT + 1))
    with pytest.raises(DataError, match=rf"format {FORMAT + 1}; this version of Headwater reads format {FORMAT}"):
        Manifest.load(tmp_path)

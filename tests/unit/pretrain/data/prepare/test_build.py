"""Preparation with real processes: the right ids, the same bytes however it went."""

import os
import random
import subprocess
import sys
import time

import psutil
import pytest
from forks import python
from preparing import ROOT, config, contents, flip, records, rows, start, story, write_stories
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from pretrain.data.corpus import Corpus
from pretrain.data.manifest import Manifest
from pretrain.data.prepare.build import prepare, verify
from pretrain.data.prepare.cache_key import corpus_directories, texts_of
from pretrain.data.prepare.encode import CHUNK_CHARS, chunks, cuttable, encode_documents
from pretrain.data.prepare.held_out import Part, is_held_out
from pretrain.data.sources.base import Cut, PreparedSource, TextSource
from pretrain.data.vocabulary import load_vocabulary
from pretrain.errors import ConfigError, DataError
from pretrain.tokenizer.bpe import BpeTokenizer
from pretrain.tokenizer.file import Gpt2Tokenizer, TokenizerFile


def test_preparing_needs_no_torch():
    modules = "pretrain.prepare, pretrain.data.prepare.build, pretrain.data.sources.structured"
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_ids_are_the_tokenizers_own(tmp_path, tokenizer):
    source = write_stories(tmp_path / "text", range(60))
    cfg = config(tmp_path)
    directory = prepare({"tales": source}, tokenizer, cfg)["tales"]
    assert directory.name.startswith("tales-") and directory.parent == tmp_path
    reference = Tokenizer.from_file(tokenizer.path)
    expected = {"train": [], "validation": []}
    for number in range(60):
        side = "validation" if is_held_out(story(number).encode(), cfg.held_out) else "train"
        expected[side].append(story(number))
    manifest = verify(directory)
    for split, texts in expected.items():
        assert rows(directory, split) == [[0, *reference.encode(text).ids] for text in texts]
        part = manifest.splits[split]
        assert part.documents == len(texts) > 0
        assert part.text_bytes == sum(len(text.encode()) for text in texts)
        assert part.tokens == sum(map(len, rows(directory, split)))
        corpus = Corpus.open(directory, split)  # the reader accepts what was written
        assert corpus.read(0, corpus.num_tokens).tolist() == [token for row in rows(directory, split) for token in row]
        assert corpus.document_lengths().tolist() == [len(row) for row in rows(directory, split)]
    assert len(manifest.splits["train"].shards) > 3
    assert (manifest.dtype, manifest.vocab_size, manifest.prefix, manifest.suffix) == ("uint16", 300, [0], [])


def test_any_number_of_workers_gives_the_same_bytes(tmp_path):
    source = write_stories(tmp_path / "text", range(60))
    trained = BpeTokenizer(vocab_size=290)
    for workers in (1, 2):
        prepare({"tales": source}, trained, config(tmp_path / f"with{workers}", workers=workers))
    one, two = contents(tmp_path / "with1"), contents(tmp_path / "with2")
    assert one == two
    assert not [name for name in one if "partial" in name or "tmp" in name]


def test_a_long_document_has_the_ids_of_the_whole(tokenizer):
    reference = Tokenizer.from_file(tokenizer.path)
    assert cuttable(reference)
    for text in (story(1, 90_000), story(2, 90_000).replace("\n", " "), "é" * (5 * CHUNK_CHARS), "short", ""):
        parts = list(chunks(text))
        assert "".join(parts) == text and max(map(len, parts)) <= 2 * CHUNK_CHARS
        assert len(parts) > 1 or len(text) <= 2 * CHUNK_CHARS
        if "é" * 99 in text:
            continue  # one word: cut somewhere, nothing else is promised
        [(same, ids)] = encode_documents(reference, [Part("train", text, 0)], [7], [8, 9])
        assert same.text == text and ids.tolist() == [7, *reference.encode(text).ids, 8, 9]


@pytest.mark.parametrize("legacy", [False, True], ids=["Metaspace", "Prepend"])
def test_a_tokenizer_that_marks_where_a_text_begins_sees_long_documents_whole(legacy, monkeypatch):
    monkeypatch.setattr("pretrain.data.prepare.encode.CHUNK_CHARS", 1000)
    tokenizer = Tokenizer(models.BPE())
    if legacy:  # how Llama 2 does it
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    text = story(3, 1000)
    tokenizer.train_from_iterator([text], trainers.BpeTrainer(vocab_size=60, show_progress=False))
    assert len(list(chunks(text))) > 2 and not cuttable(tokenizer)
    [(_, ids)] = encode_documents(tokenizer, [Part("train", text, 0)], [], [])
    assert ids.tolist() == tokenizer.encode(text).ids


def test_killed_again_and_again_it_ends_with_the_same_bytes(tmp_path, tokenizer):
    source = write_stories(tmp_path / "text", range(800))
    cfg = config(tmp_path / "straight", workers=2, unit_bytes=100_000)
    prepare({"tales": source}, tokenizer, cfg)
    cfg = config(tmp_path / "killed", workers=2, unit_bytes=100_000)
    finished: dict[str, tuple[int, int]] = {}  # record -> inode and time of a unit that was finished before a kill
    delays = random.Random(5)
    kills = 0
    while kills < 2:
        process = start({"tales": source}, tokenizer, cfg)
        while process.poll() is None and len(records(tmp_path / "killed")) < len(finished) + 1 + kills:
            time.sleep(0.002)
        time.sleep(delays.uniform(0, 0.05))
        if process.poll() is not None:
            break
        tree = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        kills += 1
        assert not psutil.wait_procs(tree, timeout=10)[1], "workers outlive a killed parent"
        for name, identity in finished.items():
            assert records(tmp_path / "killed")[name] == identity, "a finished unit was done again"
        finished = records(tmp_path / "killed")
    assert kills == 2 and finished
    final = start({"tales": source}, tokenizer, cfg)
    assert final.wait() == 0, final.stderr.read()
    assert contents(tmp_path / "killed") == contents(tmp_path / "straight")


def test_one_process_works_and_the_others_wait(tmp_path, tokenizer):
    source = write_stories(tmp_path / "text", range(400))
    together = [start({"tales": source}, tokenizer, config(tmp_path)) for _ in range(3)]
    answers = [process.communicate(timeout=120) for process in together]
    assert [process.returncode for process in together] == [0, 0, 0], answers
    assert len({out for out, _ in answers}) == 1 and "tales: " in answers[0][0]
    assert sum("preparing tales: " in err for _, err in answers) == 1
    waiting = [err for _, err in answers if "waiting for pid" in err]
    assert len(waiting) == 2 and all(f"on host {os.uname().nodename}" in err for err in waiting)
    assert not list(tmp_path.glob("*.partial"))


def test_prepared_corpora_are_found_again_without_work(tmp_path, tokenizer):
    source = write_stories(tmp_path / "text", range(40))
    cfg = config(tmp_path)
    first = prepare({"tales": source}, tokenizer, cfg)
    before = {path: path.stat().st_mtime_ns for path in first["tales"].iterdir()}
    source.weight = 3.0
    assert prepare({"tales": source}, tokenizer, config(tmp_path, workers=2)) == first
    assert {path: path.stat().st_mtime_ns for path in first["tales"].iterdir()} == before
    prepared = {"again": PreparedSource(path=str(first["tales"])), "tales": source}
    assert prepare(prepared, tokenizer, cfg) == {"again": first["tales"], "tales": first["tales"]}


def test_what_changes_the_corpus_changes_its_directory(tmp_path, tokenizer):
    source = write_stories(tmp_path / "text", range(40))
    cfg = config(tmp_path)

    def place(source, tokenizer, cfg):
        sources = {"tales": source}
        return corpus_directories(sources, texts_of(sources), tokenizer, cfg)["tales"]

    unmasked = prepare({"tales": source}, tokenizer, cfg)["tales"]
    seen = {unmasked, place(source, tokenizer, config(tmp_path, held_out=0.2))}
    seen.add(place(source, TokenizerFile(path=tokenizer.path, prefix=[], suffix=["<|endoftext|>"]), cfg))
    seen.add(place(TextSource(paths=source.paths, documents=Cut.line), tokenizer, cfg))
    masked = prepare({"tales": source}, TokenizerFile(path=tokenizer.path, mask="the"), cfg)["tales"]
    assert load_vocabulary(masked).mask == Tokenizer.from_file(tokenizer.path).token_to_id("the") is not None
    assert load_vocabulary(unmasked).mask is None
    seen.add(masked)
    os.utime(tmp_path / "text" / "00000.txt", (2e9, 2e9))
    seen.add(place(source, tokenizer, cfg))
    assert len(seen) == 6


def test_what_is_added_to_the_files_of_gpt2_changes_the_tokenizer(tmp_path, tokenizer):
    source, cfg = write_stories(tmp_path / "text", range(40)), config(tmp_path)
    Tokenizer.from_file(tokenizer.path).model.save(str(tmp_path))
    found = {}
    for added in ([], ["<mask>"], ["<hidden>"]):
        gpt2 = Gpt2Tokenizer(path=str(tmp_path), special_tokens=["<|endoftext|>", *added])
        vocabulary = load_vocabulary(prepare({"tales": source}, gpt2, cfg)["tales"])
        found[tuple(added)] = (len(vocabulary.special), vocabulary.mask)
    assert found == {(): (300, None), ("<mask>",): (301, 300), ("<hidden>",): (301, None)}


def test_corpora_of_different_masks_are_not_mixed(tmp_path, tokenizer):
    source, cfg = write_stories(tmp_path / "text", range(40)), config(tmp_path)
    named = prepare({"tales": source}, TokenizerFile(path=tokenizer.path, mask="the"), cfg)["tales"]
    other = {"tales": PreparedSource(path=str(named)), "more": source}
    with pytest.raises(ConfigError, match=r"cannot be mixed: the configured .*ids before .*id that hides others \d+"):
        prepare(other, tokenizer, cfg)


def test_held_out_documents_stay_so_when_the_corpus_grows(tmp_path, tokenizer):
    few = prepare({"tales": write_stories(tmp_path / "few", range(100, 200))}, tokenizer, config(tmp_path))["tales"]
    many = prepare({"tales": write_stories(tmp_path / "many", range(400))}, tokenizer, config(tmp_path))["tales"]
    sides = {split: {tuple(row) for row in rows(many, split)} for split in ("train", "validation")}
    for split, other in (("train", "validation"), ("validation", "train")):
        documents = {tuple(row) for row in rows(few, split)}
        assert documents and documents <= sides[split] and not documents & sides[other]
    share = len(sides["validation"]) / 400
    assert 0.05 < share < 0.16  # of 0.1, three standard deviations


def test_the_entry_prepares_verifies_and_says_what_it_made(tmp_path, tokenizer):
    write_stories(tmp_path / "stories", range(200))
    words = [
        *("-m", "pretrain.prepare", "tokenizer=file", f"tokenizer.path={tokenizer.path}"),
        *("data=text", f"data.sources.text.paths={tmp_path}/stories"),
        *(f"data.prepare.root={tmp_path}", "data.prepare.held_out=0.1", "data.prepare.verify=true"),
    ]

    first, second = (python(*words, cwd=ROOT) for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout and "preparing" not in second.stderr
    [directory] = tmp_path.glob("text-*")
    manifest = Manifest.load(directory)
    assert str(directory) in first.stdout
    assert f"{manifest.splits['train'].tokens:,} tokens" in first.stdout
    assert manifest.splits["validation"].documents > 5
    flip(directory / "train-00000.arrow")
    broken = python(*words, cwd=ROOT)
    assert broken.returncode == DataError.exit_code and "train-00000.arrow: SHA-256" in broken.stderr

"""The first look at a source: what is held out of few documents or many, and what is refused before any work."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from preparing import config, contents, rows, story, write_stories
from pyarrow import parquet
from tokenizers import Tokenizer

from pretrain.data.manifest import Manifest
from pretrain.data.prepare.build import prepare
from pretrain.data.prepare.cache_key import corpus_directories, fitting, texts_of
from pretrain.data.prepare.held_out import HeldOut, is_held_out
from pretrain.data.prepare.survey import Least, Survey, survey
from pretrain.data.sources.base import Cut, StdlibSource, TextSource
from pretrain.data.sources.structured import HubSource, JsonLinesSource, ParquetSource
from pretrain.errors import ConfigError, DataError
from pretrain.tokenizer.bpe import BpeTokenizer
from pretrain.tokenizer.wordpiece import WordPieceTokenizer

BOOK = "\n\n".join(story(number, words=60) for number in range(40))


def look(source, seq_len=1, root=".", **values) -> Survey:
    [text] = texts_of({"own": source}).values()
    return survey("own", text, config(root, **values), Least(seq_len, seq_len))


def said(source, **values) -> str:
    [text] = texts_of({"own": source}).values()
    return look(source, **values).described("own", text)


def write_records(directory: Path, kind: str, texts: list[str]):
    """A source of records of one kind."""
    directory.mkdir(exist_ok=True)
    if kind == "jsonl":
        (directory / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        return JsonLinesSource(paths=str(directory))
    parquet.write_table(pa.table({"text": texts}), directory / "train.parquet")
    return ParquetSource(paths=f"{directory}/*") if kind == "parquet" else HubSource(path=str(directory))


@given(st.text(), st.floats(0, 0.99))
def test_a_document_is_divided_at_its_end_and_never_within_a_character(text, fraction):
    parts = HeldOut(fraction, by_position=True).parts(text)
    held = sum(part.size for part in parts if part.split == "validation")
    assert held <= fraction * len(text.encode())
    assert [part.split for part in parts] == sorted(part.split for part in parts)
    assert all(part.size == len(part.text.encode()) and part.text.strip(" \n\t\r\f\v") for part in parts)
    if len(parts) == 2:
        assert parts[0].text + parts[1].text == text


@pytest.mark.parametrize(
    ("text", "first"),
    [(BOOK, "story"), (BOOK.replace("\n\n", "\n"), ""), (BOOK.replace("\n", " "), ""), ("é" * 5000, "é")],
    ids=["paragraphs", "lines", "words", "characters"],
)
def test_the_end_of_one_text_is_held_out_from_the_best_place_on(text, first):
    train, validation = (part.text for part in HeldOut(0.1, by_position=True).parts(text))
    assert train + validation == text and validation.startswith(first)
    assert 0.05 * len(text) <= len(validation) <= 0.1 * len(text)
    assert train[-1] == ("é" if "é" * 9 in text else "\n" if "\n" in text else " ")


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_a_book_is_prepared_by_default(tmp_path, tokenizer, pack, capfd):
    (tmp_path / "book").write_bytes(pack(BOOK.encode()))
    cfg = config(tmp_path / "corpora", unit_bytes=1000)
    [directory] = prepare({"text": TextSource(paths=str(tmp_path / "book"))}, tokenizer, cfg).values()
    assert "text: 1 file, a document is a file; the last 10 % of it is held out\n" in capfd.readouterr().err
    decode = Tokenizer.from_file(tokenizer.path).decode
    train, validation = (decode(row) for split in ("train", "validation") for row in rows(directory, split))
    assert train + validation == BOOK and 0.08 * len(BOOK) < len(validation) <= 0.1 * len(BOOK)
    assert Manifest.load(directory).splits["validation"].text_bytes == len(validation.encode())
    before = contents(tmp_path / "corpora")
    prepare({"text": TextSource(paths=[str(tmp_path / "book")])}, tokenizer, cfg)
    assert contents(tmp_path / "corpora") == before


@pytest.mark.parametrize("kind", ["text", "jsonl", "parquet", "hub"])
def test_whole_documents_are_held_out_where_there_are_enough(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    texts = [story(number, words=50) for number in range(80)]
    for count, few in ((4, True), (80, False)):
        if kind == "text":
            source = write_stories(tmp_path / str(count), range(count))
        else:
            source = write_records(tmp_path / f"records-{count}", kind, texts[:count])
        found = look(source)
        assert found.held_out == HeldOut(0.1, by_position=few)
        assert found.documents == (count if few else None)
    assert "the last 10 % of each of the 4 is held out" in said(write_stories(tmp_path / "4", range(4)))
    assert look(StdlibSource()).held_out.by_position is False


def test_documents_whose_hashes_are_all_on_one_side_are_divided(tmp_path):
    numbers = [number for number in range(60) if not is_held_out(story(number).encode(), 0.1)]
    assert look(write_stories(tmp_path / "text", numbers)).held_out.by_position
    assert not look(write_stories(tmp_path / "text", range(60))).held_out.by_position


def test_a_long_text_is_cut_into_parts_that_are_all_divided(tmp_path, monkeypatch):
    monkeypatch.setattr("pretrain.data.sources.base.PART_BYTES", 1000)
    (tmp_path / "book").write_text(BOOK)
    source = TextSource(paths=str(tmp_path / "book"))
    assert look(source) == Survey(look(source).units, HeldOut(0.1, by_position=True), None)
    assert said(source).endswith("a document is a part of about 4 MiB; the last 10 % of each is held out")


def test_by_default_many_files_are_the_corpus_that_they_always_were(tmp_path, tokenizer):
    sources = {"tales": write_stories(tmp_path / "text", range(9))}
    named = {"tales": TextSource(paths=sources["tales"].paths, documents=Cut.file)}
    places = [corpus_directories(each, texts_of(each), tokenizer, config(tmp_path)) for each in (sources, named)]
    assert places[0] == places[1]
    trained = BpeTokenizer(), BpeTokenizer(vocab_size=16384)
    sources = {"stdlib": StdlibSource()}
    first, second = (corpus_directories(sources, texts_of(sources), each, config(tmp_path)) for each in trained)
    assert first == second


@pytest.mark.parametrize("tokenizer", [BpeTokenizer(), WordPieceTokenizer()])
def test_a_vocabulary_that_nobody_chose_suits_the_size_of_the_text(tmp_path, tokenizer):
    sizes = []
    for copies in (1, 10):
        (tmp_path / "book").write_text(BOOK * copies)
        found = fitting(tokenizer, texts_of({"text": TextSource(paths=str(tmp_path / "book"))}))
        sizes.append(found.vocab_size - found.alphabet_size[0] - len(found.special_tokens))
    assert sizes == [len(BOOK.encode()) // 256, len(BOOK.encode()) * 10 // 256]
    assert fitting(tokenizer, texts_of({"hub": HubSource(path="org/name")})).vocab_size == 16384


REFUSED = {
    r"data\.sources\.own: 180 bytes of text to train on, fewer than one slot of data\.seq_len=512 tokens": (
        {"book.txt": b"x" * 200},
        {"seq_len": 512},
    ),
    r"data\.prepare\.held_out=0\.01: 9 of the 909 bytes of text of data\.sources\.own are held out, fewer": (
        {"book.txt": b"word " * 180 + b"the last."},
        {"seq_len": 64, "held_out": 0.01},
    ),
    r"data\.prepare\.held_out=0\.1: 0 of the 8 bytes": ({"book.txt": b"a letter"}, {}),
    r"data\.sources\.own: no text in it \(left out: empty 1\)": ({"blank.txt": b"\n \n"}, {}),
    r"data\.sources\.own: no text in it \(left out: empty_file 2\); check its": ({"a.txt": b"", "b.txt": b""}, {}),
    r"z\.txt: a PDF document": ({f"{n}.txt": story(n).encode() for n in range(70)} | {"z.txt": b"%PDF-1.7"}, {}),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_prepared_is_refused_at_once(tmp_path, message):
    files, values = REFUSED[message]
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        look(TextSource(paths=str(tmp_path)), **values)


def test_white_space_where_the_training_split_is_does_not_blame_the_vocabulary(tmp_path):
    (tmp_path / "late.txt").write_text(" " * 3000 + "a line at the end")
    source = TextSource(paths=f"{tmp_path}/late.txt", documents=Cut.file)
    with pytest.raises(DataError) as error:
        prepare({"late": source}, BpeTokenizer(vocab_size=290), config(tmp_path / "corpora"))
    assert "data.sources.late: no text in its training split" in str(error.value)
    assert "lower data.prepare.held_out=0.1" in str(error.value)


def test_a_wrong_field_of_any_file_is_refused_at_once(tmp_path):
    source = write_records(tmp_path / "lines", "jsonl", [story(number) for number in range(90)])
    (tmp_path / "lines" / "z.jsonl").write_text('{"txt": "a"}\n')
    with pytest.raises(DataError, match=r"z\.jsonl: byte 0: no field 'text'"):
        look(source)


def test_of_a_mixture_nothing_is_prepared_if_one_source_is_too_small(tmp_path, tokenizer):
    (tmp_path / "tiny.txt").write_text("tiny")
    sources = {"large": write_stories(tmp_path / "text", range(40)), "tiny": TextSource(paths=f"{tmp_path}/tiny.txt")}
    with pytest.raises(DataError, match=r"data\.sources\.tiny: 4 bytes of text to train on"):
        prepare(sources, tokenizer, config(tmp_path / "corpora"), seq_len=64)
    with pytest.raises(DataError, match=r"data\.sources\.tiny: 4 bytes of text to train on"):
        prepare({"tiny": sources["tiny"]}, BpeTokenizer(vocab_size=290), config(tmp_path / "corpora"), seq_len=64)
    assert contents(tmp_path / "corpora") == {}
    (tmp_path / "tiny.txt").write_text("tiny " * 20)
    assert len(prepare(sources, tokenizer, config(tmp_path / "corpora"), seq_len=64)) == 2


def test_a_folder_that_holds_the_corpora_is_refused(tmp_path, tokenizer):
    write_stories(tmp_path / "text", range(3))
    with pytest.raises(ConfigError, match=r"data\.sources\.own: .* a folder that holds data\.prepare\.root"):
        prepare({"own": TextSource(paths=str(tmp_path))}, tokenizer, config(tmp_path / "corpora"))

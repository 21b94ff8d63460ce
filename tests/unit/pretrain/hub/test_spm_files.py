"""Tokenizers made of SentencePiece's models give every text the ids that SentencePiece gives it."""

import json
import re

import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st
from marian_tokenizers import train_model, write_marian_tokenizers
from tokenizers import Tokenizer
from transformers import MarianTokenizer

from pretrain.errors import CheckpointError, ConfigError
from pretrain.hub.spm_files import import_tokenizer, needs_tokenizer
from pretrain.import_bin import main

SENTENCES = [*filter(None, re.__doc__.splitlines()), "People and the world: état, naïveté!", "ein Satz über Bäume"]
T5_IDS = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}


def train(vocab_size=150, **options):
    """Return the bytes of a small model."""
    return train_model(SENTENCES, vocab_size=vocab_size, **options)


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    """SentencePiece's reader of a model, and the tokenizer that was made of it."""
    directory = tmp_path_factory.mktemp("t5")
    model = train(**T5_IDS)
    (directory / "spiece.model").write_bytes(model)
    (directory / "tokenizer_config.json").write_text('{"extra_ids": 7}')
    assert needs_tokenizer(directory)
    assert main([str(directory)]) == 0
    assert not needs_tokenizer(directory), "it is there now"
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    return sentencepiece.SentencePieceProcessor(model_proto=model), tokenizer


@settings(max_examples=200)
@given(st.text(st.sampled_from("Thetimofyar, wlétïB: ﬁ½Ω漢\t\n  </s>ux0_1d"), max_size=40))
@example("two  spaces , and   one before ")
@example("")
@example("The ﬁrst ½ of Ω漢字 and naïveté")
@example("</s> <extra_id_0> <pad> <unk>")
def test_ids_are_those_of_sentencepiece(t5, text):
    theirs, ours = t5
    ours.encode_special_tokens = True
    assert ours.encode(text, add_special_tokens=False).ids == theirs.encode(text)
    if theirs.unk_id() not in theirs.encode(text):
        assert ours.decode(theirs.encode(text)) == theirs.decode(theirs.encode(text))


def test_a_t5_has_sentinels_behind_its_pieces_and_ends_texts(t5):
    theirs, ours = t5
    size = theirs.get_piece_size()
    assert [ours.token_to_id(f"<extra_id_{number}>") for number in (6, 0)] == [size, size + 6]
    ours.encode_special_tokens = False
    assert ours.encode("time <extra_id_0>").ids == [*theirs.encode("time"), size + 6, 1]


def test_a_marian_has_the_ids_of_its_vocabulary(tmp_path):
    model = train()
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = sorted({theirs.id_to_piece(each) for each in range(theirs.get_piece_size())} - {"<s>", "</s>", "<unk>"})
    ids = {name: number for number, name in enumerate(["</s>", "<unk>", *pieces, ">>de<<", "<pad>"])}
    for name in ("source.spm", "target.spm"):
        (tmp_path / name).write_bytes(model)
    (tmp_path / "vocab.json").write_text(json.dumps(ids))
    [file] = import_tokenizer(tmp_path)
    ours = Tokenizer.from_file(str(file))
    for text in [*SENTENCES[:3], "tea for two 漢 "]:
        assert ours.encode(text).ids == [*(ids.get(piece, 1) for piece in theirs.encode(text, out_type=str)), 0]
    assert ours.encode(">>de<< tea").ids == [ids[">>de<<"], *ours.encode("tea").ids]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The two tokenizers made of a Marian's two models, by transformers' names of the sides, and transformers' own."""
    directory = tmp_path_factory.mktemp("pair")
    write_marian_tokenizers(directory)
    written = [directory / name for name in ("target_tokenizer.json", "tokenizer.json")]
    assert import_tokenizer(directory) == written
    target, source = (Tokenizer.from_file(str(file)) for file in written)
    return {"text": source, "text_target": target}, MarianTokenizer.from_pretrained(directory)


@settings(max_examples=300)
@given(st.text(st.sampled_from("the world  timeмираßüприв漢字☃[]^\\-&.1%\t"), max_size=20))
@example("one \N{SNOWMAN}\N{SNOWMAN} two")
@example("при приве ве the приthe прИ")
@example(">>de<< the time, людиtime")
@example("")
def test_each_side_of_a_marian_pair_has_the_ids_of_transformers(pair, text):
    ours, theirs = pair
    for side, tokenizer in ours.items():
        tokenizer.encode_special_tokens = True
        [ids] = theirs(**{side: [text]})["input_ids"]
        assert tokenizer.encode(text).ids == ids
        if theirs.unk_token_id not in ids:
            assert tokenizer.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_the_sides_of_a_pair_are_cut_apart_over_one_vocabulary(pair):
    ours, _ = pair
    source, target = (tokenizer.encode("the time of the year").ids for tokenizer in ours.values())
    assert source != target
    assert ours["text"].get_vocab() == ours["text_target"].get_vocab()


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"model_type": "bpe"}, "is no Unigram model"),
        ({"byte_fallback": True, "vocab_size": 400, "hard_vocab_limit": False}, "cuts unknown characters into bytes"),
        ({"user_defined_symbols": ["<x>"]}, "has pieces of a user's own"),
    ],
)
def test_models_of_another_kind_are_refused_by_name(tmp_path, options, rule):
    (tmp_path / "spiece.model").write_bytes(train(**options))
    with pytest.raises(ConfigError, match=re.escape(f"{tmp_path / 'spiece.model'}: {rule}")):
        import_tokenizer(tmp_path)


@pytest.mark.parametrize("damaged", [train()[:-3], b"\xff" * 40, b"", b"no"], ids=["cut", "ones", "empty", "short"])
def test_damaged_models_are_refused(tmp_path, damaged):
    (tmp_path / "spiece.model").write_bytes(damaged)
    with pytest.raises(CheckpointError, match=r"spiece\.model: "):
        import_tokenizer(tmp_path)

"""A directory as XLM-RoBERTa is released: fairseq's ids, a tokenizer.json or SentencePiece's model alone."""

import json
import re

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from marian_tokenizers import train_model
from small_models import ROBERTA, small_encoder
from transformers import XLMRobertaConfig, XLMRobertaForMaskedLM, XLMRobertaTokenizer

from pretrain.errors import ConfigError
from pretrain.hub.export_dir import hf_model
from pretrain.hub.spm_files import import_tokenizer
from pretrain.import_bin import main
from pretrain.tokenizer.base import load_tokenizer
from pretrain.trained.source import open_source

SENTENCES = [*filter(None, re.__doc__.splitlines()), "People and the world: état, naïveté!", "ein Satz über Bäume"]
TEXTS = "Thetimofyar, wlétïB: ﬁ½漢  </s>ux0_1d"
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]


@pytest.fixture(scope="module")
def model():
    """SentencePiece's model, whose first pieces are <unk>, <s> and </s>."""
    return train_model(SENTENCES, vocab_size=150)


@pytest.fixture(scope="module")
def released(model, tmp_path_factory):
    """A small XLM-RoBERTa as transformers saves it, with its tokenizer.json, and that tokenizer."""
    read = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = [(read.id_to_piece(place), read.get_score(place)) for place in range(3, read.get_piece_size())]
    vocabulary = [*((name, 0.0) for name in SPECIAL), *pieces, ("<mask>", 0.0)]
    tokenizer = XLMRobertaTokenizer(vocab=vocabulary)
    config = XLMRobertaConfig(
        **{"vocab_size": len(vocabulary), "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4},
        **{"intermediate_size": 40, "max_position_embeddings": 34, "type_vocab_size": 1, "layer_norm_eps": 1e-5},
    )
    directory = tmp_path_factory.mktemp("released")
    XLMRobertaForMaskedLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory, tokenizer


@pytest.fixture(scope="module")
def imported(model, tmp_path_factory):
    """SentencePiece's reader of a model, and the tokenizer that was made of the same model alone."""
    directory = tmp_path_factory.mktemp("old")
    (directory / "sentencepiece.bpe.model").write_bytes(model)
    (directory / "config.json").write_text('{"model_type": "xlm-roberta"}')
    with pytest.raises(ConfigError, match=r"write it from sentencepiece.bpe.model \(python -m pretrain.import_bin"):
        _ = open_source(str(directory)).tokenizer
    assert main([str(directory)]) == 0
    return sentencepiece.SentencePieceProcessor(model_proto=model), load_tokenizer(directory / "tokenizer.json")


def test_a_released_directory_says_all_that_a_run_needs(released):
    directory, theirs = released
    source = open_source(str(directory))
    network, tokenizer = source.network, source.load_tokenizer()
    assert network == small_encoder(**ROBERTA, family="xlm-roberta", layers=1, mlp_width=40, max_seq_len=32).config
    assert source.template == ([0], [2]) and source.mask == theirs.mask_token_id == source.vocab_size - 1
    settings = source.tokenizer_config()
    assert (settings.prefix, settings.suffix, settings.mask) == (["<s>"], ["</s>"], "<mask>")
    record = {"vocab_size": source.vocab_size, "document_frame": [[0], [2]], "mask": source.mask}
    exported = hf_model(network, record, tokenizer)
    assert exported.config["model_type"] == "xlm-roberta" and exported.config["max_position_embeddings"] == 34
    assert exported.config["pad_token_id"] == exported.special_tokens["pad"] == 1 == network.position_offset - 1
    text = "People and the world"
    assert [0, *tokenizer.encode(text, add_special_tokens=False).ids, 2] == theirs(text).input_ids


@settings(max_examples=100)
@given(st.text(st.sampled_from(TEXTS), max_size=40))
def test_ids_of_a_model_alone_are_those_of_sentencepiece_as_fairseq_counts_them(imported, text):
    theirs, ours = imported
    fairseq = [3 if each == theirs.unk_id() else each + 1 for each in theirs.encode(text)]
    assert ours.encode(text, add_special_tokens=False).ids == fairseq


def test_a_model_alone_makes_the_vocabulary_and_the_template_of_transformers(imported, released):
    _, ours = imported
    _, theirs = released
    assert ours.get_vocab() == theirs.get_vocab()
    for texts in (["the time of"], ["the time of", "a year"]):
        assert ours.encode(*texts).ids == theirs(*texts).input_ids
    ours.encode_special_tokens = False
    assert ours.encode("the <mask> of").ids == theirs("the <mask> of").input_ids
    ours.encode_special_tokens = True


@pytest.mark.parametrize("config", [None, {"model_type": "mbart"}])
def test_other_families_number_the_pieces_otherwise(model, tmp_path, config):
    (tmp_path / "sentencepiece.bpe.model").write_bytes(model)
    if config:
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"sentencepiece.bpe.model: says nothing of the ids .* AutoTokenizer"):
        import_tokenizer(tmp_path)
    assert not (tmp_path / "tokenizer.json").exists()

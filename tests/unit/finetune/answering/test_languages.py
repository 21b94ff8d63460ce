"""The tokens of languages around texts are those of transformers' tokenizers for mBART and mBART-50."""

import pytest
import torch
from transformers import MBart50Tokenizer, MBartConfig, MBartTokenizer
from transformers.models.mbart.modeling_mbart import shift_tokens_right
from transformers.models.mbart.tokenization_mbart import FAIRSEQ_LANGUAGE_CODES as FIRST_CODES
from transformers.models.mbart50.tokenization_mbart50 import FAIRSEQ_LANGUAGE_CODES as CODES

from finetune.answering.base import Codec
from finetune.answering.frame import frame_of
from finetune.answering.languages import with_languages
from finetune.init_from import codec_of
from finetune.tasks.seq2seq.encoding import encode_pairs
from finetune.tasks.seq2seq.pairs import Pair
from pretrain.errors import ConfigError
from pretrain.hub.special_tokens import special_token_ids
from pretrain.models.base import ModelKind
from pretrain.trained.source import open_source

PIECES = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((char, -3.0) for char in "abcde")]
KINDS = {"mbart": (MBartTokenizer, FIRST_CODES), "mbart-50": (MBart50Tokenizer, CODES)}
PAD, END = 1, 2


@pytest.fixture(scope="module", params=KINDS)
def release(request, tmp_path_factory):
    """A directory without weights, transformers' tokenizer of it, and whether languages lead texts."""
    kind, codes = KINDS[request.param]
    directory = tmp_path_factory.mktemp(request.param)
    vocabulary = [*PIECES, *((code, 0.0) for code in codes), ("<mask>", 0.0)]
    kind(vocab=vocabulary, src_lang="en_XX", tgt_lang="ro_RO").save_pretrained(directory)
    sizes = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 16}
    leads = request.param == "mbart-50"
    start = {"decoder_start_token_id": END if leads else None}
    MBartConfig(vocab_size=len(vocabulary), **sizes, **heads, **start).save_pretrained(directory)
    return directory, kind.from_pretrained(directory, src_lang="de_DE", tgt_lang="ro_RO"), leads


def test_pairs_are_those_of_transformers(release):
    directory, theirs, leads = release
    codec = with_languages(codec_of(open_source(str(directory))), "de_DE", "ro_RO")
    sizes = {"max_source_tokens": 9, "max_target_tokens": 9}
    examples = encode_pairs([Pair("abc a", "dd e", "1")], codec.tokenizer, frame_of(codec), **sizes).examples
    expected = theirs("abc a", text_target="dd e")
    assert examples.source.tokens.tolist() == expected["input_ids"]
    labels = expected["labels"] if leads else expected["labels"][:-1]  # theirs learns the language behind the end, too
    assert examples.targets.tolist() == labels and labels[-1] == END
    read = shift_tokens_right(torch.tensor([expected["labels"]]), PAD)[0].tolist()
    assert examples.tokens.tolist() == read[: len(labels)]
    written = theirs.convert_tokens_to_ids("ro_RO")
    assert (codec.rules.first if leads else codec.start) == written
    again = with_languages(codec, None, None)
    assert (again.frame, again.start, frame_of(again)) == (codec.frame, codec.start, frame_of(codec))


def test_an_export_names_the_token_that_begins_texts_not_their_language(release):
    codec = with_languages(codec_of(open_source(str(release[0]))), "de_DE", "ro_RO")
    ids = special_token_ids(codec.tokenizer, {"document_frame": codec.frame}, ModelKind.encoder_decoder)
    assert (ids["bos"], ids["eos"], ids["pad"]) == (None, END, PAD)


def test_languages_that_nothing_says_or_nobody_knows_are_refused_by_name(release):
    codec = codec_of(open_source(str(release[0])))
    with pytest.raises(ConfigError, match=r"task\.target_language: required and not given.*target_language=de_DE"):
        with_languages(codec, None, None)
    with pytest.raises(ConfigError, match=r"task\.source_language=de: must be a language of the tokenizer: .*ar_AR, "):
        with_languages(codec, "de", "ro_RO")


def test_other_models_have_no_use_for_languages(release):
    tokenizer = codec_of(open_source(str(release[0]))).tokenizer
    for kind in (ModelKind.causal, ModelKind.encoder_decoder):
        codec = Codec(tokenizer=tokenizer, kind=kind, frame=([0], [END]), start=END)
        assert with_languages(codec, None, None) is codec
        with pytest.raises(
            ConfigError, match=r"task\.target_language=de_DE: this model's tokenizer puts no token of a"
        ):
            with_languages(codec, None, "de_DE")

"""The vocabulary: special ids and words of every kind of tokenizer, compared with the text itself."""

import itertools

import numpy as np
import pytest
from corpora import write_corpus
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from vocabularies import BERT, KINDS, ROBERTA, byte_level, unigram, word_piece

from pretrain.data.batch import IGNORED, Slots, Vocabulary
from pretrain.data.vocabulary import load_vocabulary
from pretrain.objectives.masking import Masking, MaskingConfig, Unit, word_starts

HINDI = "\u0939\u093f\u0928\u094d\u0926\u0940"
WORDS = ["pretraining", "tokenizer", "masks", "whole", "words", "unbelievably", "often", "caf\u00e9", "na\u00efve"]


def sentences(number: int) -> list[str]:
    draw = np.random.default_rng(3)
    return [", ".join(" ".join(draw.choice([*WORDS, HINDI, "42"], 5)) for _ in range(3)) + "." for _ in range(number)]


TEXTS = sentences(60)


def known(folder, tokenizer: Tokenizer, documents=((0,),), vocab_size=None, **template) -> Vocabulary:
    """Return what is known of a tokenizer once a corpus was made with it."""
    size = vocab_size or tokenizer.get_vocab_size()
    return load_vocabulary(write_corpus(folder, documents, vocab_size=size, tokenizer=tokenizer.to_str(), **template))


def names(tokenizer: Tokenizer, ids: np.ndarray) -> set[str]:
    return {tokenizer.id_to_token(int(token)) for token in np.flatnonzero(ids)}


@pytest.mark.parametrize(
    ("train", "special", "mask", "template"),
    [
        (word_piece, BERT, "[MASK]", ("[CLS]", "[SEP]")),
        (unigram, BERT, "[MASK]", ("[CLS]", "[SEP]")),
        (byte_level, ROBERTA, "<mask>", ("<s>", "</s>")),
    ],
)
def test_special_ids(tmp_path, train, special, mask, template):
    tokenizer = train(TEXTS)
    prefix, suffix = ([tokenizer.token_to_id(name)] for name in template)
    vocabulary = known(tmp_path / "c", tokenizer, prefix=prefix, suffix=suffix)
    assert names(tokenizer, vocabulary.special) == set(special)
    assert vocabulary.mask == tokenizer.token_to_id(mask)
    assert (vocabulary.prefix, vocabulary.suffix) == (prefix, suffix)
    assert vocabulary.starts_word[vocabulary.special].all() and vocabulary.ends_word[vocabulary.special].all()


def test_what_encoder_decoders_need(tmp_path):
    """Sentinels in their order whatever their ids, the id that a decoder begins with, and ends of sentences."""
    tokenizer = byte_level(TEXTS)
    tokenizer.add_special_tokens(["<extra_id_1>", "<extra_id_0>", "<extra_id_3>"])
    ids = tokenizer.get_vocab(with_added_tokens=True)
    frame = {"prefix": [ids["<s>"]], "suffix": [ids["</s>"]]}
    vocabulary = known(tmp_path / "padded", tokenizer, **frame)
    assert vocabulary.sentinels == [ids["<extra_id_0>"], ids["<extra_id_1>"]], "<extra_id_2> is not there"
    assert vocabulary.start == ids["<pad>"]
    stops = names(tokenizer, vocabulary.ends_sentence)
    assert {"."} < stops and all(name[-1] in ".!?\N{IDEOGRAPHIC FULL STOP}" for name in stops)
    without = Tokenizer.from_str(tokenizer.to_str().replace("<pad>", "<x>"))
    assert known(tmp_path / "framed", without, **frame).start == ids["<s>"]
    assert known(tmp_path / "ended", without, suffix=[ids["</s>"]]).start == ids["</s>"]
    assert known(tmp_path / "bare", without).start is None


def test_tokens_that_no_text_becomes_are_special_without_being_declared(tmp_path):
    """A vocab.txt declares nothing: what its pre-tokenizer takes apart cannot be text."""
    vocabulary = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##b", "[", "]", "##1"]
    ids = [*range(10), 13]
    model = models.WordPiece(vocab=dict(zip(vocabulary, ids, strict=True)), unk_token="[UNK]")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    found = known(tmp_path / "c", tokenizer, vocab_size=14, prefix=[3], suffix=[4])
    assert found.special.tolist() == [True] * 6 + [False] * 4 + [True] * 3 + [False], "nor do ids without a token"
    assert found.mask == 5


def test_the_mask_is_the_one_that_the_corpus_records(tmp_path):
    tokenizer = word_piece(TEXTS)
    text = tokenizer.token_to_id("##s")
    for place, recorded, mask in (("none", None, 4), ("other", 0, 0), ("text", text, text)):
        found = known(tmp_path / place, tokenizer, mask=recorded)
        assert found.mask == mask
        assert names(tokenizer, found.special) == {*BERT, tokenizer.id_to_token(mask)}


BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
NESTED = pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.Sequence([BYTES])])


@pytest.mark.parametrize(
    ("normalizer", "splitter"),
    [
        (None, BYTES),
        (None, NESTED),
        (normalizers.ByteLevel(), pre_tokenizers.Whitespace()),
        (normalizers.Sequence([normalizers.NFC(), normalizers.ByteLevel()]), None),
    ],
)
def test_bytes_are_known_by_what_makes_them_too(tmp_path, normalizer, splitter):
    """A file may have no decoder."""
    tokenizer = byte_level(TEXTS)
    expected = known(tmp_path / "whole", tokenizer)
    tokenizer.decoder, tokenizer.pre_tokenizer, tokenizer.normalizer = None, splitter, normalizer
    assert '"decoder":null' in tokenizer.to_str()
    found = known(tmp_path / "bare", tokenizer)
    assert (found.starts_word == expected.starts_word).all() and (found.ends_word == expected.ends_word).all()
    assert not expected.starts_word.all()


def test_added_tokens_that_are_text_stay_text(tmp_path):
    tokenizer = byte_level(TEXTS)
    tokenizer.add_tokens([AddedToken("<br>", special=False)])
    found = known(tmp_path / "c", tokenizer)
    assert not found.special[tokenizer.token_to_id("<br>")]


def test_a_tokenizer_may_have_no_mask(tmp_path):
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    found = known(tmp_path / "c", tokenizer)
    assert found.mask is None
    assert found.special.tolist() == [False, False, True]
    assert found.starts_word.all() and found.ends_word.all()


def groups(tokenizer: Tokenizer, vocabulary: Vocabulary, text: str) -> list[str]:
    """Return the words of a text, put together from the tokens that belong together."""
    ids = np.array(tokenizer.encode(text).ids)
    word = word_starts(ids, np.array([0, len(ids)]), vocabulary).cumsum()
    return [tokenizer.decode(ids[word == number].tolist()).strip() for number in range(1, word[-1] + 1)]


@pytest.mark.parametrize("train", [byte_level, unigram])
@pytest.mark.parametrize("size", [300, 330, 400])
def test_words_are_what_lies_between_spaces_and_punctuation(tmp_path, train, size):
    """Also where a token is a part of a character, or a mark that combines with a letter before it."""
    size = size - 200 if train is unigram else size
    tokenizer = train(TEXTS, size)
    found = groups(
        tokenizer,
        known(tmp_path / "c", tokenizer),
        f"na\u00efve caf\u00e9, often; {HINDI}-words: 42.",
    )
    expected = ["na\u00efve", "caf\u00e9", ",", "often", ";", HINDI, "-", "words", ":", "42", "."]
    if train is unigram:  # it never saw these
        expected = [word for word in expected if word not in ";-:"]
    assert [word for word in found if word] == expected


def test_words_of_word_piece_are_those_of_its_pre_tokenizer(tmp_path):
    tokenizer = word_piece(TEXTS, 80)
    vocabulary = known(tmp_path / "c", tokenizer)
    for text in TEXTS:
        encoding = tokenizer.encode(text)
        starts = word_starts(np.array(encoding.ids), np.array([0, len(encoding)]), vocabulary)
        assert starts.tolist() == [True] + [one != other for one, other in itertools.pairwise(encoding.word_ids)]
        assert (~starts).any()


def test_byte_fallback_and_end_of_word_suffixes(tmp_path):
    fallback = Tokenizer(models.BPE({"\u2581": 0, "\u2581a": 1, "b": 2, "<0xC3>": 3, "<0xA9>": 4, "<0x2C>": 5}, []))
    fallback.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    found = known(tmp_path / "fallback", fallback)
    assert found.starts_word.tolist() == [True, True, False, False, False, True]
    assert found.ends_word.tolist() == [False, False, False, False, False, True]
    suffixed = Tokenizer(models.BPE({"a": 0, "b</w>": 1}, [], end_of_word_suffix="</w>"))
    found = known(tmp_path / "suffixed", suffixed)
    assert (found.starts_word.tolist(), found.ends_word.tolist()) == ([False, False], [False, True])


@pytest.mark.parametrize("kind", KINDS)
def test_whole_words_of_real_tokenizers_are_hidden_whole(tmp_path, kind):
    """Read back from the text by the offsets of tokens: each run of letters is hidden or shown, never parted."""
    draw = np.random.default_rng(4)
    letters = sorted(set("".join(WORDS)))
    noise = [" ".join("".join(draw.choice(letters, draw.integers(2, 9))) for _ in range(9)) + ", . " for _ in range(60)]
    tokenizer = KINDS[kind](noise, 300 if kind == "byte_level" else 120)
    texts = [text.replace(HINDI, "often").replace("42", "masks") for text in TEXTS]
    encodings = [tokenizer.encode(text) for text in texts]
    tokens = np.concatenate([encoding.ids for encoding in encodings])
    offsets = np.cumsum([0, *map(len, encodings)])
    vocabulary = known(tmp_path / "c", tokenizer, [encoding.ids for encoding in encodings])
    config = MaskingConfig(unit=Unit.whole_words, rate=0.4)
    slots = Slots(tokens, tokens, offsets.astype(np.int32), offsets[[0, -1]], np.array([[0, 0, 0]]))
    hidden = Masking(config, vocabulary, vocabulary.mask, 1)(slots)[1] != IGNORED
    runs, chosen, parted = 0, 0, 0
    for text, encoding, begin in zip(texts, encodings, offsets[:-1], strict=True):
        covered = np.zeros(len(text), dtype=bool)
        for (first, last), is_hidden in zip(encoding.offsets, hidden[begin : begin + len(encoding)], strict=True):
            covered[first:last] |= is_hidden
        for letters, run in itertools.groupby(
            zip(text, covered.tolist(), strict=True), key=lambda pair: pair[0].isalpha()
        ):
            if letters:
                fates = {is_covered for _, is_covered in run}
                runs, chosen, parted = runs + 1, chosen + (True in fates), parted + (len(fates) > 1)
    assert runs == 60 * 15 and not parted
    assert abs(chosen / runs - 0.4) < 5 * (0.4 * 0.6 / runs) ** 0.5
    assert len(tokens) > 1.5 * runs, "words of one token would prove nothing"

"""Tokenizers: trained, loaded and released ones; text stays text; the template of a document."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from vocabularies import BERT, ROBERTA

from pretrain.errors import ConfigError, DataError
from pretrain.tokenizer.base import (
    Roles,
    TokenizerConfig,
    describe,
    find_sentinels,
    load_tokenizer,
    tokenizer_sha256,
)
from pretrain.tokenizer.bpe import BpeTokenizer
from pretrain.tokenizer.file import Gpt2Tokenizer, TokenizerFile
from pretrain.tokenizer.unigram import UnigramTokenizer
from pretrain.tokenizer.wordpiece import WordPieceTokenizer

TEXTS = [f"def function_{number}(argument): return argument + {number}\n" for number in range(300)]


def saved(directory: Path, text: str) -> Path:
    path = directory / "tokenizer.json"
    path.write_text(text)
    return path


def words(*special: str, vocab=()) -> str:
    """A word-level tokenizer with some special tokens."""
    entries = {token: number for number, token in enumerate([*special, *vocab, "a", "b", "[UNK]"])}
    tokenizer = Tokenizer(models.WordLevel(entries, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(special))
    return tokenizer.to_str()


def test_bpe_has_exactly_the_size_asked_for_and_gives_text_back(tmp_path):
    path = saved(tmp_path, BpeTokenizer(vocab_size=300).train(iter(TEXTS)))
    tokenizer = load_tokenizer(path)
    assert tokenizer.get_vocab_size() == 300
    text = "def other(é, \U0001f600):\r\n\treturn <|endoftext|>  \x00"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


TRAINS = """
import json, sys
from pretrain.tokenizer.bpe import BpeTokenizer
print(BpeTokenizer(vocab_size=320).train(iter(json.loads(sys.argv[1]))), end="")
"""


def test_bpe_training_is_the_same_in_another_process_with_other_threads_and_hashes():
    here = BpeTokenizer(vocab_size=320).train(iter(TEXTS))
    for threads, seed in (("1", "1"), ("3", "2")):
        parallel = {"RAYON_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "true", "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", TRAINS, json.dumps(TEXTS)]
        there = subprocess.run(command, env=os.environ | parallel, capture_output=True, text=True, check=True)
        assert there.stdout == here


def test_bpe_refuses_a_corpus_that_is_too_small():
    with pytest.raises(DataError, match=r"tokenizer\.vocab_size=5000: .*choose tokenizer\.vocab_size=\d+ or less"):
        BpeTokenizer(vocab_size=5000).train(iter(TEXTS))


@pytest.mark.parametrize("values", [{"vocab_size": 256}, {"min_frequency": 0}, {"train_bytes": 0}])
def test_bpe_refuses_impossible_values(values):
    with pytest.raises(ValueError, match=rf"tokenizer\.{next(iter(values))}="):
        BpeTokenizer(**values)


def test_special_tokens_in_text_are_text(tmp_path):
    path = saved(tmp_path, BpeTokenizer(vocab_size=300).train(iter(TEXTS)))
    tokenizer = load_tokenizer(path)
    assert Tokenizer.from_file(str(path)).encode("a<|endoftext|>b").ids[1] == 0  # what the library does by itself
    for ids in (
        tokenizer.encode("a<|endoftext|>b", add_special_tokens=False).ids,
        tokenizer.encode_batch_fast(["a<|endoftext|>b"], add_special_tokens=False)[0].ids,
    ):
        assert 0 not in ids
        assert tokenizer.decode(ids) == "a<|endoftext|>b"


def test_truncation_and_padding_of_a_file_are_ignored(tmp_path):
    tokenizer = Tokenizer.from_str(words("[CLS]", "[SEP]"))
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=8)
    loaded = load_tokenizer(saved(tmp_path, tokenizer.to_str()))
    assert len(loaded.encode("a b a b a").ids) == 5


@pytest.mark.parametrize(
    ("special", "prefix", "suffix"),
    [
        (["<|endoftext|>"], ["<|endoftext|>"], []),
        (["<pad>", "<s>", "</s>"], ["<s>"], ["</s>"]),
        (["[PAD]", "[CLS]", "[SEP]", "[MASK]"], ["[CLS]"], ["[SEP]"]),
        (["<|begin_of_text|>", "<|end_of_text|>"], ["<|begin_of_text|>"], ["<|end_of_text|>"]),
        (["<bos>", "<eos>"], ["<bos>"], ["<eos>"]),
    ],
)
def test_the_template_follows_from_the_special_tokens(tmp_path, special, prefix, suffix):
    path = saved(tmp_path, words(*special))
    facts = describe(path, TokenizerConfig())
    assert facts.prefix == [special.index(token) for token in prefix]
    assert facts.suffix == [special.index(token) for token in suffix]
    chosen = describe(path, TokenizerConfig(prefix=[], suffix=["a", special[-1]]))
    assert (chosen.prefix, chosen.suffix) == ([], [len(special), len(special) - 1])


def test_a_tokenizer_without_known_tokens_needs_a_template(tmp_path):
    path = saved(tmp_path, words("[START]"))
    with pytest.raises(ConfigError, match=r"tokenizer\.prefix: .*name its own"):
        describe(path, TokenizerConfig(prefix=["[START]"]))
    assert describe(path, TokenizerConfig(prefix=["[START]"], suffix=[])).prefix == [0]
    with pytest.raises(ConfigError, match=r"tokenizer\.suffix: '\[END\]' is not in the vocabulary"):
        describe(path, TokenizerConfig(prefix=[], suffix=["[END]"]))


def test_a_named_mask_is_recorded_and_must_be_there(tmp_path):
    path = saved(tmp_path, words("<|endoftext|>", "[MASK]", "<hidden>"))
    assert describe(path, TokenizerConfig()).mask is None, "nothing is named"
    assert describe(path, TokenizerConfig(mask="<hidden>")).mask == 2
    assert TokenizerFile(path=str(path), mask="<hidden>").roles() == Roles(["<|endoftext|>"], [], "<hidden>")
    assert TokenizerFile(path=str(path)).roles().mask == "[MASK]"
    for refused in (lambda cfg: describe(path, cfg), TokenizerFile.roles):
        with pytest.raises(ConfigError, match=r"tokenizer\.mask: '<hide>' is not in the vocabulary; name a token"):
            refused(TokenizerFile(path=str(path), mask="<hide>"))


TRAINED = [
    BpeTokenizer(vocab_size=300),
    BpeTokenizer(vocab_size=300, special_tokens=["<pad>", "<s>", "</s>", "<mask>"]),
    BpeTokenizer(vocab_size=300, special_tokens=["[CLS]", "[SEP]", "<hidden>"], mask="<hidden>", suffix=[]),
    WordPieceTokenizer(vocab_size=80, special_tokens=[*BERT, "<|endoftext|>"]),
    WordPieceTokenizer(vocab_size=80, prefix=["[PAD]", "[CLS]"]),
    UnigramTokenizer(vocab_size=280, special_tokens=[*ROBERTA, "<hidden>", "<|endoftext|>"], mask="<hidden>"),
    UnigramTokenizer(vocab_size=280, special_tokens=["<pad>", "</s>", "<unk>"], sentinels=9, prefix=[]),
    BpeTokenizer(vocab_size=300, sentinels=3),
    WordPieceTokenizer(vocab_size=80, sentinels=2),
]


@pytest.mark.parametrize("cfg", TRAINED)
def test_the_roles_of_tokens_are_known_before_training(tmp_path, cfg):
    """What is promised before a text is read is what the trained tokenizer has, and what its own file says."""
    promised = cfg.roles()
    path = saved(tmp_path, cfg.train(iter(TEXTS)))
    tokenizer, facts = load_tokenizer(path), describe(path, cfg)
    assert [tokenizer.id_to_token(token) for token in facts.prefix] == promised.prefix
    assert [tokenizer.id_to_token(token) for token in facts.suffix] == promised.suffix
    ready = TokenizerFile(path=str(path), prefix=cfg.prefix, suffix=cfg.suffix, mask=cfg.mask)
    assert ready.roles() == promised
    assert [tokenizer.id_to_token(token) for token in range(len(cfg.tokens()))] == cfg.tokens()
    assert ready.tokens() == tokenizer.get_vocab(with_added_tokens=True)
    assert len(find_sentinels(ready.tokens())) == len(find_sentinels(cfg.tokens())) == cfg.sentinels
    assert tokenizer.get_vocab_size() == cfg.vocab_size


def test_a_tokenizer_of_t5_says_by_itself_where_texts_end(tmp_path):
    cfg = UnigramTokenizer(vocab_size=280, special_tokens=["<pad>", "</s>", "<unk>"], sentinels=9, prefix=[])
    path = saved(tmp_path, cfg.train(iter(TEXTS)))
    assert TokenizerFile(path=str(path)).roles() == Roles([], ["</s>"], None)
    encoded = load_tokenizer(path).encode("a <extra_id_0> text")
    assert encoded.tokens[-1] == "</s>" and "<extra_id_0>" not in encoded.tokens


@pytest.mark.parametrize(
    "settings",
    [{"mask": "the"}, {"prefix": ["the"]}, {"suffix": ["</s>"]}, {"mask": ""}],
    ids=lambda one: next(iter(one)),
)
def test_a_tokenizer_that_is_trained_has_the_tokens_that_it_is_given(settings):
    [(key, value)] = settings.items()
    token = value if key == "mask" else value[0]
    with pytest.raises(ConfigError, match=rf"tokenizer\.{key}: '{token}' is not in tokenizer\.special_tokens"):
        BpeTokenizer(**settings).roles()
    with pytest.raises(ConfigError, match=r"tokenizer\.prefix: this tokenizer has none of the known tokens"):
        BpeTokenizer(special_tokens=["<start>"]).roles()


@pytest.mark.parametrize("kind", [BpeTokenizer, UnigramTokenizer])
def test_only_the_mask_takes_the_space_before_it(kind):
    special = [*ROBERTA, "<hidden>"]
    for mask in (None, "<hidden>"):
        cfg = kind(vocab_size=290, special_tokens=special, mask=mask)
        added = Tokenizer.from_str(cfg.train(iter(TEXTS))).get_added_tokens_decoder().values()
        assert {token.content for token in added if token.lstrip} == {mask or "<mask>"}


def test_padding_and_truncation_of_a_file_are_no_roles(tmp_path):
    tokenizer = Tokenizer.from_str(words("[CLS]", "[SEP]", "[PAD]"))
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 1), ("[CLS]", 0))
    tokenizer.enable_padding(length=8)
    tokenizer.enable_truncation(3)
    path = saved(tmp_path, tokenizer.to_str())
    assert TokenizerFile(path=str(path)).roles() == Roles(["[CLS]"], ["[SEP]"], None)


@pytest.mark.parametrize(("size", "dtype"), [(2**16, "uint16"), (2**16 + 1, "uint32")])
def test_ids_take_two_bytes_while_they_fit(tmp_path, size, dtype):
    filler = [f"w{number}" for number in range(size - 4)]
    facts = describe(saved(tmp_path, words("<|endoftext|>", vocab=filler)), TokenizerConfig())
    assert (facts.vocab_size, facts.dtype) == (size, dtype)


def test_the_hash_sees_values_not_spacing(tmp_path):
    raw = json.loads(words("<|endoftext|>"))
    plain = saved(tmp_path, json.dumps(raw))
    first = tokenizer_sha256(plain)
    reordered = saved(tmp_path, json.dumps(dict(reversed(raw.items())), indent=3))
    assert tokenizer_sha256(reordered) == first
    raw["model"]["vocab"]["a"], raw["model"]["vocab"]["b"] = raw["model"]["vocab"]["b"], raw["model"]["vocab"]["a"]
    assert tokenizer_sha256(saved(tmp_path, json.dumps(raw))) != first


def test_a_tokenizer_file_is_taken_as_it_is(tmp_path):
    path = saved(tmp_path, words("<|endoftext|>"))
    for place in (path, tmp_path):
        assert TokenizerFile(path=str(place)).to_json() == path.read_text()


def test_bad_files_are_refused_by_name(tmp_path):
    saved(tmp_path, '{"model": ')
    with pytest.raises(ConfigError, match=r"tokenizer\.path=.*: not a readable tokenizer\.json"):
        TokenizerFile(path=str(tmp_path)).to_json()
    with pytest.raises(ConfigError, match=r"tokenizer\.path: cannot be read .*nowhere"):
        TokenizerFile(path=str(tmp_path / "nowhere")).to_json()
    with pytest.raises(ConfigError, match=r"tokenizer\.path=.*: not GPT-2's files"):
        Gpt2Tokenizer(path=str(tmp_path)).to_json()
    with pytest.raises(ValueError, match=r"tokenizer\.path=''"):
        TokenizerFile()
    with pytest.raises(DataError, match=r"tokenizer\.json: not a readable tokenizer"):
        load_tokenizer(tmp_path / "tokenizer.json")


def test_gpt2_files_give_what_the_same_tokenizer_gives(tmp_path):
    trained = Tokenizer.from_str(BpeTokenizer(vocab_size=300).train(iter(TEXTS)))
    trained.model.save(str(tmp_path))
    path = saved(tmp_path, Gpt2Tokenizer(path=str(tmp_path)).to_json())
    facts = describe(path, TokenizerConfig())
    assert (facts.vocab_size, facts.prefix, facts.suffix) == (300, [0], [])
    assert load_tokenizer(path).encode(TEXTS[7]).ids == trained.encode(TEXTS[7]).ids


shared_data = pytest.mark.skipif(
    "HEADWATER_DATA" not in os.environ, reason="HEADWATER_DATA names no folder of real data"
)


@pytest.mark.shared_data
@shared_data
def test_the_released_gpt2_tokenizer(tmp_path):
    cfg = Gpt2Tokenizer(path=f"{os.environ['HEADWATER_DATA']}/gpt2-tokenizer")
    path = saved(tmp_path, cfg.to_json())
    tokenizer = load_tokenizer(path)
    assert tokenizer.encode("Hello world").ids == [15496, 995]
    assert tokenizer.decode([15496, 995]) == "Hello world"
    facts = describe(path, cfg)
    assert (facts.vocab_size, facts.dtype, facts.prefix, facts.suffix) == (50257, "uint16", [50256], [])


@pytest.mark.shared_data
@shared_data
def test_the_released_bert_tokenizer(tmp_path):
    cfg = TokenizerFile(path=f"{os.environ['HEADWATER_DATA']}/bert-uncased-tokenizer")
    path = saved(tmp_path, cfg.to_json())
    assert load_tokenizer(path).encode("Hello world", add_special_tokens=False).ids == [7592, 2088]
    facts = describe(path, cfg)
    assert (facts.vocab_size, facts.prefix, facts.suffix) == (30522, [101], [102])

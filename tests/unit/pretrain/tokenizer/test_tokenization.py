"""WordPiece and unigram tokenizers: trained alike in every process, and what becomes of text; document templates."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from preparing import ROOT, config, contents, rows, story, write_stories
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from pretrain.data.prepare.build import prepare, verify
from pretrain.data.prepare.cache_key import corpus_directories, texts_of
from pretrain.data.prepare.encode import cuttable
from pretrain.data.vocabulary import load_vocabulary
from pretrain.errors import DataError
from pretrain.tokenizer.base import TokenizerConfig, describe, load_tokenizer
from pretrain.tokenizer.bpe import BpeTokenizer
from pretrain.tokenizer.file import TokenizerFile
from pretrain.tokenizer.unigram import UnigramTokenizer
from pretrain.tokenizer.wordpiece import WordPieceTokenizer

TEXTS = [path.read_text() for path in sorted((ROOT / "pretrain").glob("*.py"))[:12]]
BERT, ROBERTA = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], ["<pad>", "<s>", "</s>", "<unk>", "<mask>"]


@pytest.fixture(scope="module")
def trained() -> dict[str, Tokenizer]:
    kinds = {"wordpiece": WordPieceTokenizer(vocab_size=700), "unigram": UnigramTokenizer(vocab_size=700)}
    return {name: Tokenizer.from_str(kind.train(iter(TEXTS))) for name, kind in kinds.items()}


@pytest.mark.parametrize(("kind", "special"), [("wordpiece", BERT), ("unigram", ROBERTA)])
def test_the_vocabulary_has_the_size_asked_for_and_begins_with_the_special_tokens(trained, kind, special):
    tokenizer = trained[kind]
    assert tokenizer.get_vocab_size() == 700
    assert [tokenizer.id_to_token(number) for number in range(len(special))] == special
    assert sorted(tokenizer.get_vocab().values()) == list(range(700))


@pytest.mark.parametrize("kind", ["wordpiece.WordPieceTokenizer", "unigram.UnigramTokenizer"])
def test_every_process_trains_the_same_tokenizer(kind):
    """Hash tables differ between processes, and sums between numbers of threads."""
    module, name = kind.split(".")
    code = f"""
import hashlib, pathlib
from pretrain.tokenizer.{module} import {name}
texts = [path.read_text() for path in sorted(pathlib.Path("pretrain").glob("*.py"))[:12]]
for size in (420, 900):
    print(hashlib.sha256({name}(vocab_size=size).train(iter(texts)).encode()).hexdigest())
"""
    environments = [{"RAYON_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "true"} for threads in "114"]
    found = [
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for environment in environments
    ]
    assert found[0] == found[1] == found[2]
    assert len(set(found[0].split())) == 2


def test_wordpiece_reads_text_as_bert_does(trained):
    """The reference is written out here: words by white space and punctuation, the longest token first."""
    tokenizer = trained["wordpiece"]
    vocabulary = tokenizer.get_vocab()

    def reference(text: str) -> list[str]:
        spaced = "".join(c if c.isalnum() or c.isspace() else f" {c} " for c in text.lower())
        tokens = []
        for word in spaced.split():
            found, start = [], 0
            while start < len(word):
                ends = range(len(word), start, -1)
                parts = [("##" if start else "") + word[start:end] for end in ends]
                known = next((part for part in parts if part in vocabulary), None)
                if known is None:
                    found = ["[UNK]"]
                    break
                found.append(known)
                start += len(known.removeprefix("##")) if start else len(known)
            tokens += found
        return tokens

    assert vocabulary.keys() >= {"##s", "import", "def"}
    for text in [*TEXTS[:3], "Return the QUICK brown_fox\t(jumps)", "\u5b57 kept"]:
        assert tokenizer.encode(text, add_special_tokens=False).tokens == reference(text)


def test_wordpiece_folds_case_and_accents_if_told_to(trained):
    folded = trained["wordpiece"]
    assert folded.encode("Déf").tokens == folded.encode("def").tokens == ["[CLS]", "def", "[SEP]"]
    kept = Tokenizer.from_str(WordPieceTokenizer(vocab_size=600, lowercase=False).train(iter(TEXTS)))
    assert kept.encode("True").tokens != kept.encode("true").tokens
    assert {"T", "##T"} <= kept.get_vocab().keys() and "T" not in folded.get_vocab()


def test_wordpiece_keeps_the_most_frequent_characters():
    texts = ["aaaa bbb cc d ab ba abc"] * 3
    tokenizer = Tokenizer.from_str(WordPieceTokenizer(vocab_size=11, alphabet=2).train(iter(texts)))
    assert tokenizer.encode("ab d", add_special_tokens=False).tokens[-1] == "[UNK]"
    assert {len(token.removeprefix("##")) for token in tokenizer.get_vocab() if "[" not in token} == {1, 2}
    assert set("".join(tokenizer.get_vocab()).replace("[PAD][UNK]", "")) >= {"a", "b"}
    assert not {"c", "d", "##c", "##d"} & tokenizer.get_vocab().keys()


@pytest.mark.parametrize(
    "text", ["def other(é, \U0001f600):\r\n\treturn </s>  \x00", "", " ", "\n\n", "字" * 50, "<mask> <s>"]
)
def test_unigram_gives_any_text_back(trained, tmp_path, text):
    path = tmp_path / "tokenizer.json"
    trained["unigram"].save(str(path))
    tokenizer = load_tokenizer(path)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids) == text
    assert min(ids, default=5) >= 5, "text is only text"


def test_unigram_segments_by_its_own_likelihoods(trained):
    """The reference searches all segmentations of a word for the likeliest."""
    tokenizer = trained["unigram"]
    scores = dict(json.loads(tokenizer.to_str())["model"]["vocab"])

    def best(word: str) -> float:
        totals = [0.0]
        for end in range(1, len(word) + 1):
            parts = [(start, word[start:end]) for start in range(max(0, end - 40), end)]
            totals.append(max(totals[start] + scores[part] for start, part in parts if part in scores))
        return totals[-1]

    words = [word for word, _ in pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(TEXTS[0])]
    for word in set(words):
        text = bytes_to_text(word)
        found = tokenizer.encode(text, add_special_tokens=False).tokens
        assert "".join(found) == word
        assert sum(scores[token] for token in found) == pytest.approx(best(word), abs=1e-9)


def bytes_to_text(word: str) -> str:
    return decoders.ByteLevel().decode([word])


@pytest.mark.parametrize("kind", [WordPieceTokenizer, UnigramTokenizer])
def test_a_corpus_that_is_too_small_is_refused(kind):
    with pytest.raises(DataError, match=r"tokenizer\.vocab_size=9000: .*choose tokenizer\.vocab_size=\d+ or less"):
        kind(vocab_size=9000).train(iter(TEXTS[:2]))
    with pytest.raises(DataError, match=r"tokenizer\.vocab_size=5000: .*for 5 tokens only"):
        kind(vocab_size=5000).train(iter([]))


def test_more_characters_than_tokens_are_refused():
    with pytest.raises(DataError, match=r"tokenizer\.vocab_size=20: the \d+ characters .*fewer in tokenizer\.alphabet"):
        WordPieceTokenizer(vocab_size=20).train(iter(TEXTS[:2]))


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (WordPieceTokenizer, {"vocab_size": 5}),
        (WordPieceTokenizer, {"min_frequency": 0}),
        (WordPieceTokenizer, {"alphabet": 0}),
        (WordPieceTokenizer, {"train_bytes": 0}),
        (WordPieceTokenizer, {"special_tokens": ["[PAD]", "[UNK]"]}),
        (UnigramTokenizer, {"vocab_size": 260}),
        (UnigramTokenizer, {"train_bytes": 0}),
        (UnigramTokenizer, {"special_tokens": ["<s>", "</s>"]}),
    ],
)
def test_impossible_values_are_refused(kind, values):
    with pytest.raises(ValueError, match=rf"tokenizer\.{next(iter(values))}="):
        kind(**values)


@pytest.mark.parametrize(("kind", "pair"), [("wordpiece", [2, 3, 3]), ("unigram", [1, 2, 2, 2])])
def test_the_template_is_that_of_the_released_models(trained, kind, pair, tmp_path):
    tokenizer = trained[kind]
    both = tokenizer.encode("def", "import")
    assert [token for token, special in zip(both.ids, both.special_tokens_mask, strict=True) if special] == pair
    assert both.type_ids[-1] == (1 if kind == "wordpiece" else 0)
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    facts = describe(path, TokenizerConfig())
    assert (facts.prefix, facts.suffix) == ([pair[0]], [pair[1]])


def with_template(processor: processors.PostProcessor | None) -> str:
    special = ["[CLS]", "[SEP]", "[LANG]", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate([*special, "text", "[UNK]"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(special)
    if processor is not None:
        tokenizer.post_processor = processor
    return tokenizer.to_str()


TEMPLATE = processors.TemplateProcessing(
    single="[LANG] [CLS] $A [SEP] [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 1), ("[LANG]", 2)]
)
ONE_SIDED = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 0)])


@pytest.mark.parametrize(
    ("processor", "template"),
    [
        (None, ([3], [])),
        (ONE_SIDED, ([3], [])),
        (TEMPLATE, ([2, 0], [1, 1])),
        (processors.BertProcessing(("[SEP]", 1), ("[CLS]", 0)), ([0], [1])),
        (processors.RobertaProcessing(("[SEP]", 1), ("[LANG]", 2)), ([2], [1])),
        (processors.Sequence([processors.ByteLevel(), TEMPLATE]), ([2, 0], [1, 1])),
    ],
    ids=["none", "one side", "template", "bert", "roberta", "sequence"],
)
def test_the_template_of_the_file_counts_if_it_has_two_sides(tmp_path, processor, template):
    path = tmp_path / "tokenizer.json"
    path.write_text(with_template(processor))
    facts = describe(path, TokenizerConfig())
    assert (facts.prefix, facts.suffix) == template
    chosen = describe(path, TokenizerConfig(suffix=["[LANG]"]))
    assert (chosen.prefix, chosen.suffix) == (template[0], [2]), "what is configured wins"


@pytest.mark.parametrize("kind", [WordPieceTokenizer, UnigramTokenizer])
def test_preparation_from_end_to_end(tmp_path, kind):
    source = write_stories(tmp_path / "text", range(60))
    cfg = kind(vocab_size=265 if kind is UnigramTokenizer else 80)
    directories = [
        prepare({"tales": source}, cfg, config(tmp_path / f"with{workers}", workers=workers))["tales"]
        for workers in (1, 3)
    ]
    assert contents(tmp_path / "with1") == contents(tmp_path / "with3")
    manifest = verify(directories[0])
    tokenizer = load_tokenizer(directories[0] / "tokenizer.json")
    assert cuttable(tokenizer), "a long document needs little memory"
    expected = Tokenizer.from_file(str(directories[0] / "tokenizer.json"))
    documents = [expected.encode(story(number)).ids for number in range(60)]  # with the template
    assert sorted(rows(directories[0], "train") + rows(directories[0], "validation")) == sorted(documents)
    assert sum(manifest.splits[split].text_bytes for split in manifest.splits) == sum(
        len(story(number).encode()) for number in range(60)
    ), "bytes of the text, not of what the tokenizer keeps of it"
    vocabulary = load_vocabulary(directories[0])
    assert vocabulary.mask == 4 and np.flatnonzero(vocabulary.special).tolist() == [0, 1, 2, 3, 4]
    words = [tokenizer.get_vocab()[token] for token in ("the", "fox") if token in tokenizer.get_vocab()]
    spaced = [number for token, number in tokenizer.get_vocab().items() if token[0] == "Ġ"]
    assert vocabulary.starts_word[words if kind is WordPieceTokenizer else spaced].all()
    sources = {"tales": source}
    other = corpus_directories(sources, texts_of(sources), BpeTokenizer(vocab_size=290), config(tmp_path / "with1"))
    assert other["tales"] not in directories


@pytest.mark.shared_data
@pytest.mark.skipif("HEADWATER_DATA" not in os.environ, reason="HEADWATER_DATA names no folder of real data")
def test_the_released_bert_tokenizer_has_its_template(tmp_path):
    cfg = TokenizerFile(path=f"{os.environ['HEADWATER_DATA']}/bert-uncased-tokenizer")
    path = tmp_path / "tokenizer.json"
    raw = json.loads(cfg.to_json())
    path.write_text(json.dumps(raw))
    assert (describe(path, cfg).prefix, describe(path, cfg).suffix) == ([101], [102])
    raw["post_processor"]["single"].insert(0, {"SpecialToken": {"id": "[SEP]", "type_id": 0}})
    path.write_text(json.dumps(raw))
    assert (describe(path, cfg).prefix, describe(path, cfg).suffix) == ([102, 101], [102])

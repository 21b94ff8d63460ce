"""The pipelines of the tokenizers that the most downloaded encoders have, with small vocabularies of every letter here.

Each kind names checkpoints that have its normaliser, pre-tokenizer, model and post-processor.
"""

import itertools
import struct
import unicodedata
from collections.abc import Callable

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

WORDS = [
    "red",
    "stone",
    "tide",
    "The",
    "été",
    "İstanbul",
    "ﬁne",
    "東京",
    "שלום",
    "مرحبا",
    "한국어",
    "👩‍👩‍👧",
    "🇩🇪",
    "don't",
    "1/2",
    "straße",
    "Ġorġ",
    "U.S.",
]
MARKS = "\u0301\u0315\u0300\u0327\u05b8\u0651\ufe0f\u200b\u200c\u200d\u200e\ufeff\xad\x01\x7f\ufffd"
BLANKS = " \t\n\xa0\u3000"
LETTERS = "abedirst ABÉéİßẞ'\"`.,-12½①㎏ﬁﬂＦｗÅ東か\u3099が한שלםمرﷺ…´👩👧🏽🇩🇪🙂ĠΣςª" + MARKS + BLANKS

CHARACTERS = {**dict.fromkeys("\x01\x7f", ""), **dict.fromkeys("\t\n\xa0\u200b\u200e\u3000\ufeff", " ")}
CHARACTERS |= {"e\u0301": "é", "½": "1⁄2", "㎏": "kg", "ﬁ": "fi", "Ｆ": "F", "①": "1", "…": "...", "ﷺ": "صلى الله"}
SPACES = normalizers.Replace(Regex(" {2,}"), " ")
QWEN = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
TRIMMING = processors.RobertaProcessing(("</s>", 1), ("<s>", 0))  # also trims spaces off offsets


def characters_map(replacements: dict[str, str]) -> bytes:
    """Return SentencePiece's `precompiled_charsmap`: a trie as a double array, and what its leaves point to."""
    trie: dict = {}
    texts = b""
    for old, new in replacements.items():
        node = trie
        for byte in old.encode():
            node = node.setdefault(byte, {})
        node[0] = len(texts)
        texts += new.encode() + b"\0"
    units, taken, bases = [0] * 4096, {0}, set()

    def place(node: dict, at: int) -> None:
        base = next(
            base for base in itertools.count(1) if base not in bases and not taken & {base ^ byte for byte in node}
        )
        taken.update(base ^ byte for byte in node)
        bases.add(base)
        units[at] |= (at ^ base) << 10 | (0 in node) << 8
        for byte, child in node.items():
            units[base ^ byte] = child | 1 << 31 if byte == 0 else byte
            if byte:
                place(child, base ^ byte)

    place(trie, 0)
    array = struct.pack("<4096I", *units)
    return struct.pack("<I", len(array)) + array + texts


def alphabet(normalizer: normalizers.Normalizer) -> list[str]:
    """Return every letter that a normaliser may make of the letters here."""
    found = {*LETTERS, *"".join(WORDS)}
    found |= {letter for each in [*found] for letter in normalizer.normalize_str(f"a{each}")}
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        found |= {letter for each in [*found] for letter in unicodedata.normalize(form, each + each.lower())}
    return sorted(letter for letter in found if not letter.isspace())


def word_piece(post_processor=None, **settings) -> Tokenizer:
    normalizer = normalizers.BertNormalizer(**settings)
    letters = alphabet(normalizer)
    words = " ".join(map(normalizer.normalize_str, WORDS)).split()
    pieces = ["<s>", "</s>", "[UNK]", *letters, *(f"##{letter}" for letter in letters)]
    pieces += [*words, *(f"##{word[1:]}" for word in words)]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = post_processor or processors.BertProcessing(("</s>", 1), ("<s>", 0))
    return tokenizer


def unigram(*steps: normalizers.Normalizer, words: bool = False) -> Tokenizer:
    normalizer = normalizers.Sequence([*steps])
    pieces = dict.fromkeys(["<s>", "</s>", "<unk>"], 0.0) | {"▁": -4.0}
    pieces |= dict.fromkeys(alphabet(normalizer), -5.0)
    for word in " ".join(map(normalizer.normalize_str, WORDS)).split():
        pieces |= {f"▁{word}": -4.5, f"▁{word[:2]}": -6.0, word[1:] or word: -6.0}
    tokenizer = Tokenizer(models.Unigram([*pieces.items()], unk_id=2))
    pre_tokenizer = pre_tokenizers.Metaspace()
    splits = [pre_tokenizers.WhitespaceSplit(), pre_tokenizer]
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits) if words else pre_tokenizer
    return tokenizer


def byte_level(*splits: pre_tokenizers.PreTokenizer, normalizer=None, post_processor=TRIMMING) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizers.Sequence([*splits])
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS), *WORDS] * 3, trainer)
    tokenizer.post_processor = post_processor
    return tokenizer


def byte_fallback(*steps: normalizers.Normalizer, splits=None) -> Tokenizer:
    """Letters of `absent` are spelled as bytes."""
    absent = set("½🙂東\u200dß")
    normalizer = normalizers.Sequence([*steps])
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=["<s>", "</s>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))],
        initial_alphabet=[letter for letter in alphabet(normalizer) if letter not in absent],
        limit_alphabet=10_000,
        show_progress=False,
    )
    texts = [f"▁{word}" for word in WORDS if not absent & set(word)]
    tokenizer.train_from_iterator([*texts, "".join(texts[:4])] * 3, trainer)
    tokenizer.normalizer = normalizer
    if splits:
        tokenizer.pre_tokenizer = splits
    return tokenizer


def charsmap() -> normalizers.Normalizer:
    return normalizers.Precompiled(characters_map(CHARACTERS))


def replace(old: str, new: str) -> normalizers.Normalizer:
    return normalizers.Replace(old, new)


BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
PREFIXED = pre_tokenizers.ByteLevel(add_prefix_space=True)
UNSPLIT = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
PARTS = [normalizers.NFKD(), normalizers.StripAccents()]

KINDS: dict[str, Callable[[], Tokenizer]] = {
    # bert-base-uncased, distilbert-base-uncased, electra-base-discriminator, all-MiniLM-L6-v2, bge-base-en-v1.5
    "bert_uncased": word_piece,
    # bert-base-multilingual-cased
    "bert_cased": lambda: word_piece(lowercase=False),
    # all-mpnet-base-v2
    "mpnet": lambda: word_piece(TRIMMING),
    # roberta-base, distilroberta-base
    "roberta": lambda: byte_level(BYTES),
    # the same with add_prefix_space, as the field uses it for words
    "roberta_prefixed": lambda: byte_level(PREFIXED),
    # byte-level models for languages whose words were split before
    "roberta_of_words": lambda: byte_level(pre_tokenizers.Whitespace(), PREFIXED),
    # ModernBERT-base
    "modern_bert": lambda: byte_level(BYTES, normalizer=normalizers.NFC(), post_processor=None),
    # Qwen3-Embedding-0.6B
    "qwen_embedding": lambda: byte_level(
        pre_tokenizers.Split(QWEN, "isolated"),
        UNSPLIT,
        normalizer=normalizers.NFC(),
        post_processor=processors.ByteLevel(trim_offsets=True),
    ),
    # xlm-roberta-base, camembert-base, multilingual-e5-base, bge-m3
    "xlm_roberta": lambda: unigram(charsmap(), words=True),
    # the same, as transformers 5 converts it
    "xlm_roberta_unsplit": lambda: unigram(charsmap(), normalizers.Replace(Regex(" {2,}"), "▁")),
    # deberta-v3-base, mdeberta-v3-base
    "deberta": lambda: unigram(normalizers.Strip(), charsmap(), SPACES),
    # albert-base-v2
    "albert": lambda: unigram(
        replace("``", '"'), replace("''", '"'), *PARTS, normalizers.Lowercase(), charsmap(), SPACES
    ),
    # xlnet-base-cased
    "xlnet": lambda: unigram(replace("``", '"'), *PARTS, charsmap(), SPACES),
    # embeddinggemma-300m
    "gemma_embedding": lambda: byte_fallback(
        replace(" ", "▁"), splits=pre_tokenizers.Split(" ", "merged_with_previous")
    ),
    # Llama's, whose words are not split at all: tokens may be of several
    "llama": lambda: byte_fallback(normalizers.Prepend("▁"), replace(" ", "▁")),
}

"""The tokenizers of a small Marian pair as OPUS-MT releases them: two models of SentencePiece over one vocabulary."""

import io
import json
from pathlib import Path

import sentencepiece

SOURCES = [
    "the time of the year is good",
    "people and the world of today",
    "a way of life, and a state (of) the world: well-made [x] ^y \\z",
    "school time is 100% fun & games",
]
TARGETS = ["время года хорошо", "люди и мир сегодня", "образ жизни и состояние мира", "die Straße, größer. the time"]
OTHERS = ["при", "ве", "ö漢", "漢"]  # pieces that are in neither model


def train_model(sentences: list[str], **options) -> bytes:
    """Return the file of a small model."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=written,
        minloglevel=9,
        **{"hard_vocab_limit": False, **options},
    )
    return written.getvalue()


def write_marian_tokenizers(directory: Path) -> dict[str, int]:
    """Write source.spm, target.spm and vocab.json, and return the vocabulary, which ends with padding."""
    names: set[str] = set()
    for side, sentences, size in (("source", SOURCES, 48), ("target", TARGETS, 90)):
        model = train_model(sentences * 5, vocab_size=size)
        (directory / f"{side}.spm").write_bytes(model)
        read = sentencepiece.SentencePieceProcessor(model_proto=model)
        names |= {read.id_to_piece(number) for number in range(read.get_piece_size())}
    pieces = sorted(names - {"<s>", "</s>", "<unk>"} | set(OTHERS))
    ids = {name: number for number, name in enumerate(["</s>", "<unk>", *pieces, ">>de<<", "<pad>"])}
    (directory / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")
    return ids

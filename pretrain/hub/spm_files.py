"""Models of SentencePiece, which older T5, XLM-R and Marian directories have, written anew as `tokenizer.json`.

Holds the reading of such a file, a message of protobuf, and what it means to the `tokenizers` library. Unigram models
alone are read; each text gets the ids that SentencePiece gives it. A Marian cuts sources and targets by two models,
over one vocabulary: those of targets are then cut by `target_tokenizer.json`.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from pretrain.errors import CheckpointError, ConfigError
from pretrain.files import replace_file
from pretrain.hub.weight_files import read_json
from pretrain.tokenizer.base import FOR_TARGETS, IDS, OF_SOURCES, OF_TARGETS, PAIR_FILES

ONE_MODEL = "spiece.model"  # T5's
OF_FAIRSEQ = "sentencepiece.bpe.model"  # XLM-RoBERTa's, no BPE whatever its name; mBART's and CamemBERT's, too
MODEL_FILES = (ONE_MODEL, OF_FAIRSEQ, OF_SOURCES)
BEGIN, END = "<s>", "</s>"
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # stands for a space in pieces
_NORMAL = 1  # kind of a piece that text is cut into
_UNUSED = 5  # kind of a piece that no text is cut into
_UNIGRAM = 1  # kind of a model
_NEVER = -1e6  # score of a token that no text is cut into
_UNKNOWN = "\uffff"  # stands for characters that are in no token; no character itself

log = logging.getLogger(__name__)


class Piece(NamedTuple):
    """An entry of the vocabulary."""

    text: str
    score: float
    kind: int


class SpmModel(NamedTuple):
    """What a file says of how it cuts texts."""

    pieces: list[Piece]
    unknown: int  # id of the piece for what is in no other
    charsmap: bytes  # how characters are normalised
    adds_space: bool  # before a text
    drops_spaces: bool  # at both ends of a text, and of several all but one


def needs_tokenizer(directory: Path) -> bool:
    """Whether a directory has models of SentencePiece, and no tokenizer.json."""
    models = any((directory / name).is_file() for name in MODEL_FILES)
    return models and not (directory / "tokenizer.json").exists()


def import_tokenizer(directory: Path) -> list[Path]:
    """Write the tokenizer.json of a directory that has models of SentencePiece alone, and return what was written.

    If a Marian's two models differ, that of targets comes first. Raises `ConfigError` for models that are not read,
    `CheckpointError` for damaged ones.
    """
    if (directory / ONE_MODEL).is_file():
        made = {"tokenizer.json": _t5(directory)}
    elif (directory / OF_FAIRSEQ).is_file():
        made = {"tokenizer.json": _xlm_roberta(directory)}
    else:
        source, target = directory / OF_SOURCES, directory / OF_TARGETS
        one = target.is_file() and source.read_bytes() == target.read_bytes()
        made = {} if one else {FOR_TARGETS: _marian(target)}
        made["tokenizer.json"] = _marian(source)
    for name, tokenizer in made.items():
        replace_file(directory / name, [tokenizer.to_str(pretty=True).encode()])
    return [directory / name for name in made]


def pair_files(directory: Path) -> dict[str, bytes]:
    """Return, by name, what a directory has beside tokenizer.json if its targets have a tokenizer of their own.

    transformers reads the models of SentencePiece, and we do not need them.
    """
    names = PAIR_FILES if (directory / FOR_TARGETS).is_file() else ()
    return {name: path.read_bytes() for name in names if (path := directory / name).is_file()}


def _t5(directory: Path) -> Tokenizer:
    """Return the tokenizer of a T5: behind the pieces, sentinels from the last one to the first."""
    model = read_spm(directory / ONE_MODEL)
    file = directory / "tokenizer_config.json"
    sentinels = (read_json(file) if file.is_file() else {}).get("extra_ids", 100)
    names = [f"<extra_id_{number}>" for number in reversed(range(sentinels))]
    pieces = [*model.pieces, *(Piece(name, 0.0, 0) for name in names)]
    return _tokenizer(model, pieces, model.unknown)


def _xlm_roberta(directory: Path) -> Tokenizer:
    """Return the tokenizer of an XLM-RoBERTa: fairseq's special tokens, then the model's other pieces, then the mask.

    Other families have the same file, and number its pieces in other ways: these are refused.
    """
    file, config = directory / OF_FAIRSEQ, directory / "config.json"
    found = read_json(config).get("model_type") if config.is_file() else None
    if found != "xlm-roberta":
        rule = f"says nothing of the ids of its pieces, and those of model_type={found} are not known"
        raise ConfigError(f"{file}: {rule}; save transformers' AutoTokenizer of it there, which writes tokenizer.json")
    model, special = read_spm(file), [BEGIN, "<pad>", END, "<unk>"]
    others = [piece for piece in model.pieces if piece.text not in special]
    pieces = [*(Piece(name, 0.0, 0) for name in special), *others, Piece("<mask>", 0.0, 0)]
    tokenizer = _tokenizer(model, pieces, special.index("<unk>"))
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, normalized=False, special=True)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A {END}",
        pair=f"{BEGIN} $A {END} {END} $B {END}",
        special_tokens=[(name, special.index(name)) for name in (BEGIN, END)],
    )
    return tokenizer


def _marian(file: Path) -> Tokenizer:
    """Return the tokenizer of one side of a Marian: the ids are those of vocab.json, which both sides share."""
    model, ids = read_spm(file), read_json(file.parent / IDS)
    names = sorted(ids, key=lambda name: ids[name])
    if [ids[name] for name in names] != list(range(len(ids))) or "<unk>" not in ids or END not in ids:
        rule = f"has no ids from 0 to {len(ids) - 1} for its tokens, <unk> and {END}"
        raise CheckpointError(f"{file.parent / IDS}: {rule}")
    known = {piece.text: piece for piece in model.pieces}
    if missing := [piece.text for piece in model.pieces if piece.kind == _NORMAL and piece.text not in ids]:
        log.warning("%s: %d pieces have no id in %s, so texts are cut into others", file, len(missing), IDS)
    special = ("<unk>", END, "<pad>")
    pieces = [known.get(name, Piece(name, 0.0, 0 if name in special else _UNUSED)) for name in names]
    tokenizer = _tokenizer(model, pieces, ids["<unk>"])
    languages = [name for name in names if name.startswith(">>") and name.endswith("<<")]  # begin a source
    if foreign := [name for name in names if name not in known and name not in (*special, *languages)]:
        known_chars = {char for piece in model.pieces if piece.kind == _NORMAL for char in piece.text}
        _set_apart(tokenizer, known_chars, foreign)
    tokenizer.add_tokens([AddedToken(name, normalized=False, special=False) for name in languages])
    return tokenizer


def _set_apart(tokenizer: Tokenizer, known: set[str], foreign: Sequence[str]) -> None:
    """Keep a side's texts from the `foreign` tokens of the other side, which has other characters than the `known`.

    SentencePiece makes one piece of characters in a row that it does not know. It gets the id of a foreign token if it
    is one, and else that of the unknown one.
    """
    unknown = "[^ " + "".join(rf"\x{{{ord(char):x}}}" for char in sorted(known)) + "]"
    whole = [name for name in foreign if len(name) > 1 and not known.intersection(name)]
    alone = "|".join("".join(rf"\x{{{ord(char):x}}}" for char in name) for name in whole)
    but_whole = f"(?!(?:{alone})(?!{unknown}))" if whole else ""
    several = normalizers.Replace(Regex(f"(?<!{unknown})(?={unknown}{{2}}){but_whole}{unknown}+"), _UNKNOWN)
    tokenizer.normalizer = normalizers.Sequence([tokenizer.normalizer, several])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [tokenizer.pre_tokenizer, pre_tokenizers.Split(Regex(f"{unknown}+"), "isolated")]
    )


def _tokenizer(model: SpmModel, pieces: Sequence[Piece], unknown: int) -> Tokenizer:
    """Return what cuts texts into pieces as a model does, and ends them with END; ids are places in `pieces`."""
    scores = [(piece.text, piece.score if piece.kind == _NORMAL else _NEVER) for piece in pieces]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=unknown))
    steps: list[normalizers.Normalizer] = []
    if model.charsmap:
        steps.append(normalizers.Precompiled(model.charsmap))
    if model.drops_spaces:
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    tokenizer.normalizer = normalizers.Sequence(steps)
    crossing = any(_SPACE in piece.text[1:] for piece in pieces)  # then texts are not cut at spaces first
    scheme = "always" if model.adds_space else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, prepend_scheme=scheme, split=not crossing)
    tokenizer.decoder = decoders.Metaspace(_SPACE, prepend_scheme=scheme)
    special = [piece.text for place, piece in enumerate(pieces) if piece.kind in (0, 2, 3) or place == unknown]
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in special])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", pair=f"$A {END} $B {END}", special_tokens=[(END, tokenizer.token_to_id(END))]
    )
    return tokenizer


def read_spm(path: Path) -> SpmModel:
    """Return the model in a file. Raises `CheckpointError` for a damaged one, `ConfigError` for one of another kind."""
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    pieces = []
    try:
        for number, value in _fields(path.read_bytes()):
            parts = dict(_fields(value)) if isinstance(value, bytes) and number <= 3 else {}
            if number == 1:
                pieces.append(_piece(parts))
            elif number in (2, 3):
                (trainer if number == 2 else normalizer).update(parts)
    except (OSError, ValueError, IndexError, TypeError, struct.error) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); fetch or write it again") from None
    wrong = {
        "is no Unigram model": trainer.get(3, _UNIGRAM) != _UNIGRAM,
        "cuts unknown characters into bytes": bool(trainer.get(35, 0)),
        "puts spaces at the end of pieces": bool(trainer.get(24, 0)),
        "leaves spaces as they are": not normalizer.get(5, 1),
        "has pieces of a user's own": any(piece.kind == 4 for piece in pieces),
    }
    if rules := [rule for rule, holds in wrong.items() if holds]:
        fix = "write its tokenizer.json with transformers (save_pretrained of AutoTokenizer)"
        raise ConfigError(f"{path}: {' and '.join(rules)}, which is not read; {fix}")
    unknown, charsmap = trainer.get(40, 0), normalizer.get(2, b"")
    if not isinstance(unknown, int) or not isinstance(charsmap, bytes) or not 0 <= unknown < len(pieces):
        raise CheckpointError(f"{path}: no model of SentencePiece; fetch or write it again")
    return SpmModel(pieces, unknown, charsmap, bool(normalizer.get(3, 1)), bool(normalizer.get(4, 1)))


def _piece(parts: dict[int, int | bytes]) -> Piece:
    text, score, kind = parts[1], parts.get(2, b"\0\0\0\0"), parts.get(3, _NORMAL)
    if not isinstance(text, bytes) or not isinstance(score, bytes) or not isinstance(kind, int):
        raise TypeError("a piece is none")
    return Piece(text.decode(), struct.unpack("<f", score)[0], kind)


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the number and the value of each field of a message of protobuf: a whole number, or its bytes."""
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        kind = tag & 7
        if kind == 0:
            value, place = _varint(message, place)
            yield tag >> 3, value
            continue
        if kind == 2:
            size, place = _varint(message, place)
        else:
            size = {1: 8, 5: 4}[kind] if kind in (1, 5) else -1
        if size < 0 or place + size > len(message):
            raise ValueError("a field is cut off")
        yield tag >> 3, message[place : place + size]
        place += size


def _varint(message: bytes, place: int) -> tuple[int, int]:
    """Return the whole number at a place, seven bits a byte, and the place behind it."""
    value = shift = 0
    while True:
        byte = message[place]
        place += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, place
        if shift > 63:
            raise ValueError("a number does not end")

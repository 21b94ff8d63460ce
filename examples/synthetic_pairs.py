"""A small translation made from the source code of Python's own standard library: expressions, and how one says them.

    python examples/synthetic_pairs.py data/synthetic

writes `pairs/`, with `train.jsonl` and `validation.jsonl`: pairs of `code`, an expression somewhere in the library, and
of its `words`, such as `len ( self . rows ) >= 2` and "the length of rows of self is at least 2". The code has a
space between its tokens, so that a name is the same word on both sides. Nobody wrote these sentences, and nobody talks
so: they are made from the code by the rules below. That makes the task a fair one to see a model learn on, as each
expression has one right translation, which takes new words and another order; a score on it says nothing of languages
that people speak.

Training and validation share no file and no expression, but they share their words: expressions with a name or a number
that is rare in training are left out, so that a model can know each word, and has to put them together anew.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import io
import json
import re
import sysconfig
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from pretrain.data.sources.base import StdlibSource

VALIDATION_EVERY = 8  # files; one of them is for validation
NUM_VALIDATION = 1000  # expressions
LONGEST = 40  # characters of an expression
RAREST = 40  # expressions of the training set that have a word, at least

SAID = ast.Compare | ast.BoolOp | ast.UnaryOp | ast.BinOp | ast.Subscript | ast.Call

COMPARED = {
    ast.Eq: "equals",
    ast.NotEq: "differs from",
    ast.Lt: "is less than",
    ast.LtE: "is at most",
    ast.Gt: "is greater than",
    ast.GtE: "is at least",
    ast.Is: "is",
    ast.IsNot: "is not",
    ast.In: "is in",
    ast.NotIn: "is not in",
}
COMPUTED = {
    ast.Add: "plus",
    ast.Sub: "minus",
    ast.Mult: "times",
    ast.Div: "divided by",
    ast.FloorDiv: "divided by",
    ast.Mod: "modulo",
    ast.BitAnd: "masked by",
}
SIGNS = {ast.Not: "not", ast.USub: "minus"}


class NoWords(Exception):
    """There is no rule for some part of an expression."""


def main() -> None:
    """Write the pairs into the folder that the command line names."""
    parser = argparse.ArgumentParser(description="Make pairs of expressions and words from Python's standard library.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("data/synthetic"))
    folder = parser.parse_args().folder / "pairs"
    folder.mkdir(parents=True, exist_ok=True)
    for name, records in zip(("train", "validation"), split(library()), strict=True):
        file = folder / f"{name}.jsonl"
        lines = (json.dumps({"code": code, "words": words}) + "\n" for code, words in records.items())
        file.write_text("".join(lines), encoding="utf-8")
        print(f"{file}: {len(records):,} pairs")


def library() -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each file that `data=stdlib` makes its corpus of, in order."""
    root = Path(sysconfig.get_path("stdlib"))
    for entry in StdlibSource().inputs():
        with tokenize.open(root / entry.name) as file:  # in the encoding that the file declares
            yield entry.name, file.read()


def split(files: Iterable[tuple[str, str]]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the words of each expression for training and of those for validation, in an order of their own."""
    found: tuple[dict[str, str], dict[str, str]] = {}, {}
    for name, text in files:
        held_out = _draw(name)[0] % VALIDATION_EVERY == 0
        found[held_out].update(expressions(text))
    counts = Counter(word for code in found[0] for word in _words_of(code))
    train, validation = (
        {
            code: pairs[code]
            for code in sorted(pairs, key=_draw)
            if all(counts[word] >= RAREST for word in _words_of(code))
        }
        for pairs in found
    )
    validation = {code: words for code, words in validation.items() if code not in train}
    return train, dict([*validation.items()][:NUM_VALIDATION])


def _words_of(code: str) -> set[str]:
    """Return the names, numbers and words of texts in an expression."""
    return {*re.findall(r"\w+", code)}


def _draw(text: str) -> bytes:
    """Return what puts texts into a random order that is the same everywhere."""
    return hashlib.sha256(text.encode()).digest()


def expressions(text: str) -> dict[str, str]:
    """Return the words of the expressions of a file for which there are rules, by their code, `spaced`."""
    return dict(_expressions(ast.parse(text)))


def _expressions(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if not isinstance(node, SAID):
            continue
        code = ast.unparse(node)
        try:
            words = say(node)
        except NoWords:
            continue
        if words != code and len(code) <= LONGEST and code.isascii() and code.isprintable():
            yield spaced(code), words


def spaced(code: str) -> str:
    """Return an expression with a space between its tokens."""
    tokens = tokenize.generate_tokens(io.StringIO(code).readline)
    return " ".join(token.string for token in tokens if token.string.strip())


def say(node: ast.expr) -> str:
    """Return an expression in words. Raises `NoWords` where a part of it has no rule."""
    match node:
        case ast.Name():
            return node.id
        case ast.Constant(value=None):
            return "nothing"
        case ast.Constant():
            return ast.unparse(node)
        case ast.Attribute():
            return f"{node.attr} of {say(node.value)}"
        case ast.Subscript(slice=ast.Slice()):
            raise NoWords
        case ast.Subscript():
            return f"item {say(node.slice)} of {say(node.value)}"
        case ast.Call(keywords=[]):
            return _call(node)
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            return f"{SIGNS[type(node.op)]} {say(node.operand)}"
        case ast.BinOp() if type(node.op) in COMPUTED:
            return f"{say(node.left)} {COMPUTED[type(node.op)]} {say(node.right)}"
        case ast.BoolOp():
            return f" {'and' if isinstance(node.op, ast.And) else 'or'} ".join(map(say, node.values))
        case ast.Compare(ops=[op], comparators=[right]):
            if isinstance(right, ast.Tuple | ast.List | ast.Set) and isinstance(op, ast.In | ast.NotIn):
                denied = "not " if isinstance(op, ast.NotIn) else ""
                return f"{say(node.left)} is {denied}one of {_listed(right.elts)}"
            return f"{say(node.left)} {COMPARED[type(op)]} {say(right)}"
    raise NoWords


def _call(node: ast.Call) -> str:
    match node:
        case ast.Call(func=ast.Name(id="isinstance"), args=[one, kind]):
            return f"{say(one)} is a kind of {_listed(kind.elts) if isinstance(kind, ast.Tuple) else say(kind)}"
        case ast.Call(func=ast.Name(id="len"), args=[one]):
            return f"the length of {say(one)}"
        case ast.Call(args=[]):
            return f"what {say(node.func)} gives"
    return f"what {say(node.func)} makes of {_listed(node.args)}"


def _listed(nodes: list[ast.expr]) -> str:
    if not nodes:
        raise NoWords
    words = [say(node) for node in nodes]
    return ", ".join(words[:-1]) + f" and {words[-1]}" if len(words) > 1 else words[0]


if __name__ == "__main__":
    main()

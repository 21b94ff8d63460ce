"""Expressions become the words that the rules say; validation holds none that training has, but only words it knows."""

import ast

import pytest

from examples import synthetic_pairs

SAID = {
    "len(self.rows) >= 2": "the length of rows of self is at least 2",
    "not x[0].done and y is not None": "not done of item 0 of x and y is not nothing",
    "isinstance(a, (int, str)) or a in ('b', \"c d\")": "a is a kind of int and str or a is one of 'b' and 'c d'",
    "f() != g(a, -b) % 3": "what f gives differs from what g makes of a and minus b modulo 3",
    "o.m.n(a, b, 1) not in [x, y, z]": "what n of m of o makes of a, b and 1 is not one of x, y and z",
}


@pytest.mark.parametrize("code", SAID)
def test_expressions_in_words(code):
    assert synthetic_pairs.say(ast.parse(code, mode="eval").body) == SAID[code]


def test_expressions_are_found_with_their_parts_in_one_style():
    assert synthetic_pairs.expressions('if a.b(c) == "d": e = -f') == {
        "a . b ( c ) == 'd'": "what b of a makes of c equals 'd'",
        "a . b ( c )": "what b of a makes of c",
        "- f": "minus f",
    }


def test_expressions_that_have_no_words_or_need_none_are_left_out():
    unsaid = ["x", "x.y", "x[1:2]", "f(a=1)", "f(*a)", "1 < x < 3", "lambda: x", "x in ()", "x == 'é'", "~x"]
    text = "".join(f"while {code}:\n    assert True\n" for code in unsaid)
    assert synthetic_pairs.expressions(text) == {}
    assert synthetic_pairs.expressions(f"{'x' * 38} + 1") == {}


def test_training_and_validation_share_words_but_no_expression(monkeypatch):
    monkeypatch.setattr(synthetic_pairs, "RAREST", 3)
    files = [
        ("file_0.py", "name + word\nname - word\n"),
        ("file_1.py", "name * word\nname + rare\nname + word\n"),
        ("file_13.py", "name + word\nname % word\nname % new\nname % rare\n"),  # by its hash for validation
    ]
    train, validation = synthetic_pairs.split(files)
    assert train.keys() == {"name + word", "name - word", "name * word"}
    assert validation == {"name % word": "name modulo word"}
    assert [*train] == [*synthetic_pairs.split(reversed(files))[0]]

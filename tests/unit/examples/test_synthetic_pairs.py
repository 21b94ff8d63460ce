"""Conditions become the words that the rules say, and validation holds none that training has."""

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
def test_conditions_in_words(code):
    [(found, words)] = synthetic_pairs.conditions(f"if {code}:\n    pass").items()
    assert words == SAID[code]
    assert found == code.replace('"', "'")


def test_conditions_that_have_no_words_or_need_none_are_left_out():
    unsaid = [
        "x",
        "x[1:2]",
        "f(a=1)",
        "f(*a)",
        "1 < x < 3",
        "lambda: x",
        "x in ()",
        "x == 'é'",
        " and ".join(["not x"] * 40),
    ]
    text = "".join(f"while {code}:\n    assert True\n" for code in unsaid)
    assert synthetic_pairs.conditions(text) == {}


def test_training_and_validation_share_no_condition():
    files = [(f"file_{number}.py", f"if a == {number % 50}: pass\nif b < {number}: pass\n") for number in range(90)]
    train, validation = synthetic_pairs.split(files)
    assert not train.keys() & validation.keys()
    assert {*train, *validation} == {f"a == {number}" for number in range(50)} | {
        f"b < {number}" for number in range(90)
    }
    assert 3 <= len(validation) <= 30
    assert synthetic_pairs.split(reversed(files)) == (train, validation)

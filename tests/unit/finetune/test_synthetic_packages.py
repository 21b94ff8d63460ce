"""Functions and the packages they come from: nothing of the label in the text, nothing of one set in the other."""

import ast
import sysconfig
from collections import Counter
from pathlib import Path

import pytest

from finetune.synthetic import packages
from finetune.synthetic.library import SourceFile
from finetune.synthetic.packages import ALIKE, LABELS, MOST_OF_ONE, MOST_TRAINING, NUM_VALIDATION, SHORTEST, examples

LIBRARY = Path(sysconfig.get_path("stdlib"))


@pytest.fixture(scope="module")
def sets(library):
    return examples(library)


def test_packages_are_alike_in_number(sets):
    training, validation = (Counter(example.label for example in part) for part in sets)
    assert validation == dict.fromkeys(LABELS, NUM_VALIDATION)
    assert training.keys() == set(LABELS)
    assert MOST_TRAINING / 3 <= min(training.values()) <= max(training.values()) <= MOST_TRAINING
    for part in sets:
        assert max(Counter((example.file, example.definition) for example in part).values()) <= MOST_OF_ONE


def test_a_text_is_the_code_of_its_place_without_words_about_it(sets):
    for example in [*sets[0], *sets[1]]:
        first, last = example.lines
        lines = (LIBRARY / example.file).read_text().split("\n")[first - 1 : last]
        [theirs] = ast.parse("\n".join(["if True:", *lines]) if lines[0].startswith(" ") else "\n".join(lines)).body
        theirs = theirs.body[0] if isinstance(theirs, ast.If) else theirs
        if isinstance(theirs.body[0], ast.Expr) and isinstance(theirs.body[0].value, ast.Constant):
            assert isinstance(theirs.body.pop(0).value.value, str)
        [ours] = ast.parse(example.text).body
        assert ast.dump(ours) == ast.dump(theirs)
        assert example.file.startswith((f"{example.label}/", f"{example.label}.py"))


def test_no_text_names_a_package(sets):
    for example in [*sets[0], *sets[1]]:
        assert not [label for label in LABELS if label in example.text.lower()]
        assert len(example.text) >= SHORTEST


def test_the_validation_set_is_new_to_who_learnt_the_training_set(sets):
    training, validation = sets
    places = [{(example.file, example.definition) for example in part} for part in sets]
    assert not places[0] & places[1], "a class is in one set"
    texts = [example.text for example in [*training, *validation]]
    assert len(set(texts)) == len(texts)
    halves = [
        (first, second)
        for first in validation
        for second in training
        if first.label == second.label and first.text.split("(", 1)[1] == second.text.split("(", 1)[1]
    ]
    assert not halves, "nor are they the same but for their names"


def source(name, text):
    return SourceFile(name, text, ast.parse(text))


LONG = "value = self.first + self.second * self.third - self.fourth / self.fifth\n"


@pytest.fixture
def two_labels(monkeypatch):
    monkeypatch.setattr(packages, "LABELS", ["http", "xml"])
    monkeypatch.setattr(packages, "NUM_VALIDATION", 1)
    monkeypatch.setattr(packages, "ALIKE", 2)  # nothing is


def found(*files):
    training, validation = examples(list(files))
    return sorted(example.text for example in [*training, *validation])


def test_decorators_docstrings_and_comments_are_left_out(two_labels):
    head = '@cached\nasync def one(self, *, a: int = 1) -> int:\n    "Doc."\n    # why\n'
    text = f'{head}    {LONG}    return {{"a" : a}}\n'
    assert found(source("http/client.py", text)) == [
        f"async def one(self, *, a: int=1) -> int:\n    {LONG}    return {{'a': a}}"
    ]


def test_what_is_short_named_or_there_twice_is_left_out(two_labels):
    good = f"def good():\n    {LONG}    return value"
    files = [
        source("http/a.py", f"{good}\ndef short():\n    return 1\n"),
        source("http/b.py", f"def named():\n    {LONG}    return XmlReader\n"),
        source("http/c.py", f"def twice():\n    {LONG}"),
        source("xml.py", f"def twice():\n    {LONG}class A:\n    def method(self):\n        {LONG}"),
        source("json/a.py", f"def stranger():\n    {LONG}"),
    ]
    assert found(*files) == [good, f"def method(self):\n    {LONG.strip()}"]


def test_nearly_the_same_is_not_learnt_from(two_labels, monkeypatch):
    monkeypatch.setattr(packages, "ALIKE", ALIKE)
    files = [source(f"http/{name}.py", f"def {name}():\n    {LONG}    return {name}\n") for name in "abcd"]
    other = source("http/e.py", "def e():\n" + "".join(f"    take{n}(more{n}[{n}])\n" for n in range(9)))
    training, validation = examples([*files, other])
    assert len(validation) == 1
    assert [example.file for example in training] == (["http/e.py"] if validation[0].file != "http/e.py" else [])

"""The synthetic tasks: labels that another reading of the code confirms, and nothing of one set in the other."""

import ast
import json
import os
import subprocess
import sys
import sysconfig
import tokenize
from collections import Counter
from pathlib import Path

import pytest

from examples import synthetic_tasks
from examples.synthetic_tasks import (
    MIN_CHARACTERS,
    MOST_OF_A_CLASS,
    MOST_TRAINING,
    NEAR_DUPLICATE,
    NUM_NAMES,
    NUM_VALIDATION,
    NUM_WORDS,
    PACKAGES,
    functions_of,
    library,
    names,
    packages,
    tags_of,
    words_of,
)
from finetune.config import FINETUNE
from pretrain.compose import compose

LIBRARY = Path(sysconfig.get_path("stdlib"))
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def functions():
    return list(library())


@pytest.fixture(scope="module")
def folder(tmp_path_factory, functions):
    """A folder where the script has written its files, from functions that are read once for all tests."""
    folder = tmp_path_factory.mktemp("synthetic")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.setattr(sys, "argv", [synthetic_tasks.__file__])
        patched.setattr(synthetic_tasks, "library", lambda: functions)
        synthetic_tasks.main()
    return folder


DRAW = """
import json, sys
from examples.synthetic_tasks import Code, StdlibSource, names, packages
functions = [Code(text, file, definition, tuple(lines)) for text, file, definition, lines in json.load(sys.stdin)]
files = [entry.name for entry in StdlibSource().inputs()]
print(json.dumps({"files": files, "packages": packages(functions), "names": names(functions)}))
"""


def test_the_files_are_the_same_in_each_process(folder, functions):
    """In one that hashes strings otherwise, too: there sets have another order."""
    told, seed = {"input": json.dumps(functions), "text": True}, {"PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", DRAW]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **seed}, stdout=subprocess.PIPE, check=True, **told)
    drawn = json.loads(done.stdout)
    assert drawn.pop("files") == [entry.name for entry in synthetic_tasks.StdlibSource().inputs()]
    for name, split in drawn.items():
        for part, records in zip(("train", "validation"), split, strict=True):
            lines = (folder / "data" / "synthetic" / name / f"{part}.jsonl").read_text().splitlines()
            assert [json.loads(line) for line in lines] == records


@pytest.mark.parametrize("name", ["packages", "names"])
def test_their_experiment_reads_them(folder, monkeypatch, name):
    monkeypatch.chdir(folder)
    cfg = compose([f"experiment=synthetic/{name}"], root=FINETUNE)
    assert cfg.run.name == f"synthetic_{name}"
    for file in (cfg.task.train, cfg.task.validation):
        assert len(cfg.task.records(file)) == len((folder / file).read_text().splitlines()) >= 200


@pytest.fixture(scope="module")
def by_package(functions):
    return packages(functions)


def test_packages_are_alike_in_number(by_package):
    training, validation = (Counter(record["label"] for record in part) for part in by_package)
    assert validation == dict.fromkeys(PACKAGES, NUM_VALIDATION)
    assert training.keys() == set(PACKAGES)
    assert MOST_TRAINING / 3 <= min(training.values()) <= max(training.values()) <= MOST_TRAINING


def test_a_text_is_the_code_of_its_place_and_names_no_package(by_package):
    for record in [*by_package[0], *by_package[1]]:
        first, last = record["lines"]
        with tokenize.open(LIBRARY / record["file"]) as file:
            lines = file.read().split("\n")[first - 1 : last]
        [node] = ast.parse("\n".join(["if True:", *lines]) if lines[0].startswith(" ") else "\n".join(lines)).body
        node = node.body[0] if isinstance(node, ast.If) else node
        if isinstance(node.body[0], ast.Expr) and isinstance(node.body[0].value, ast.Constant):
            assert isinstance(node.body.pop(0).value.value, str)
        [text] = ast.parse(record["text"]).body
        assert ast.dump(text) == ast.dump(node)
        assert record["file"].startswith((f"{record['label']}/", f"{record['label']}.py"))
        assert not [label for label in PACKAGES if label in record["text"].lower()]
        assert len(record["text"]) >= MIN_CHARACTERS


def test_no_class_and_no_text_is_in_both_sets(by_package, functions):
    definitions = {(code.file, code.lines): code.definition for code in functions}
    places = [
        Counter((record["file"], definitions[record["file"], record["lines"]]) for record in part)
        for part in by_package
    ]
    assert not places[0].keys() & places[1].keys()
    assert max(max(counts.values()) for counts in places) <= MOST_OF_A_CLASS
    texts = [record["text"] for part in by_package for record in part]
    assert len(set(texts)) == len(texts)


LONG = "value = self.first + self.second * self.third - self.fourth / self.fifth\n"


@pytest.fixture
def two_packages(monkeypatch):
    monkeypatch.setattr(synthetic_tasks, "PACKAGES", ["http", "xml"])
    monkeypatch.setattr(synthetic_tasks, "NUM_VALIDATION", 1)
    monkeypatch.setattr(synthetic_tasks, "NEAR_DUPLICATE", 2)  # shares are at most 1: nothing is


def texts_of(**files):
    functions = [code for name, text in files.items() for code in functions_of(name.replace("__", "/") + ".py", text)]
    training, validation = packages(functions)
    return sorted(record["text"] for record in [*training, *validation])


def test_decorators_docstrings_and_comments_are_left_out(two_packages):
    head = '@cached\nasync def one(self, *, a: int = 1) -> int:\n    "Doc."\n    # why\n'
    text = f'{head}    {LONG}    return {{"a" : a}}\n'
    assert texts_of(http__client=text) == [f"async def one(self, *, a: int=1) -> int:\n    {LONG}    return {{'a': a}}"]


def test_what_is_short_or_named_or_there_twice_is_left_out(two_packages):
    good = f"def good():\n    {LONG}    return value"
    found = texts_of(
        http__a=f"{good}\ndef short():\n    return 1\n",
        http__b=f"def named():\n    {LONG}    return XmlReader\n",
        http__c=f"def twice():\n    {LONG}",
        xml=f"def twice():\n    {LONG}class A:\n    def method(self):\n        {LONG}",
        json__a=f"def stranger():\n    {LONG}",
    )
    assert found == [good, f"def method(self):\n    {LONG.strip()}"]


def test_near_duplicates_of_validation_are_not_trained_on(two_packages, monkeypatch):
    monkeypatch.setattr(synthetic_tasks, "NEAR_DUPLICATE", NEAR_DUPLICATE)
    functions = [
        code
        for name in "abcd"
        for code in functions_of(f"http/{name}.py", f"def {name}():\n    {LONG}    return {name}\n")
    ]
    other = "def e():\n" + "".join(f"    take{n}(more{n}[{n}])\n" for n in range(9))
    training, validation = packages([*functions, *functions_of("http/e.py", other)])
    assert len(validation) == 1
    assert [record["file"] for record in training] == (["http/e.py"] if validation[0]["file"] != "http/e.py" else [])


def test_the_sets_of_names_share_no_file(functions):
    training, validation = names(functions)
    assert (len(training), len(validation)) == NUM_NAMES
    files = {tuple(words_of(code.text)): code.file for code in functions}
    parts = [{files[tuple(record["words"])] for record in part} for part in (training, validation)]
    assert not parts[0] & parts[1]
    assert all(len(record["words"]) == len(record["tags"]) in NUM_WORDS for record in [*training, *validation])


def test_what_names_are():
    text = "def read(self, size: int=-1, *rest):\n    data = self.buffer[:size].decode()\n    return len(data), 'size'"
    assert [(word, tag) for word, tag in zip(words_of(text), tags_of(text), strict=True) if tag != "O"] == [
        ("self", "B-parameter"),
        ("size", "B-parameter"),
        ("int", "B-global"),
        ("rest", "B-parameter"),
        ("data", "B-local"),
        ("self", "B-parameter"),
        ("buffer", "B-attribute"),
        ("size", "B-parameter"),
        ("decode", "B-attribute"),
        ("len", "B-global"),
        ("data", "B-local"),
    ]

"""Questions about source code, whose answers another reading of the same piece gives, too."""

import ast
import re

import pytest

from finetune.synthetic.library import SourceFile
from finetune.synthetic.signatures import CONTEXT, KINDS, LONGEST_ANSWER, MOST_TRAINING, MOST_VALIDATION, questions

COLUMNS = {"id": "id", "question": "question", "context": "context", "answers": "answers", "answer_start": ""}


@pytest.fixture(scope="module")
def sets(library):
    return questions(library)


def reading(context):
    """Return the functions and classes of a context by name, however far its other lines are indented."""
    for indent in range(0, 17, 4):
        try:
            tree = ast.parse("if 1:\n" * bool(indent) + " " * indent + context)
        except SyntaxError:
            continue
        nodes = [
            node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        ]
        names = [node.name for node in nodes]
        return {node.name: node for node in nodes if names.count(node.name) == 1}
    raise AssertionError(context)


def expected(text, nodes):
    """Return what the answer to a question means, as code."""
    if asked := re.fullmatch(r"What is the default of (\w+) in (\w+)\?", text):
        arguments = nodes[asked[2]].args
        pairs = list(zip([*arguments.posonlyargs, *arguments.args][::-1], arguments.defaults[::-1], strict=False))
        pairs += zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
        [default] = [default for parameter, default in pairs if parameter.arg == asked[1]]
        return ast.unparse(default)
    if asked := re.fullmatch(r"Which parameter follows (\w+) in (\w+)\?", text):
        arguments = nodes[asked[2]].args
        names = [parameter.arg for parameter in [*arguments.posonlyargs, *arguments.args]]
        return names[names.index(asked[1]) + 1]
    if asked := re.fullmatch(r"What does (\w+) return\?", text):
        [value] = [node.value for node in ast.walk(nodes[asked[1]]) if isinstance(node, ast.Return)]
        return ast.unparse(value)
    asked = re.fullmatch(r"Which class does (\w+) inherit from\?", text)
    [base] = nodes[asked[1]].bases
    return ast.unparse(base)


def test_answers_are_those_of_another_reading(sets):
    for question in [*sets[0], *sets[1]]:
        nodes = reading(question.context)
        assert len(re.findall(r"^ *(?:async def|def|class) ", question.context, re.MULTILINE)) > 1, "it has to be found"
        assert ast.unparse(ast.parse(question.answer, mode="eval")) == expected(question.text, nodes)
        assert question.context[question.start :].startswith(question.answer)
        assert len(question.context) in CONTEXT
        assert 0 < len(question.answer) <= LONGEST_ANSWER and re.search(r"[a-zA-Z0-9]", question.answer)


def test_the_sets_share_no_file_and_no_context(sets):
    files = [{question.id.partition(",")[0] for question in part} for part in sets]
    assert not files[0] & files[1]
    assert not {question.context for question in sets[0]} & {question.context for question in sets[1]}
    for part, most in zip(sets, (MOST_TRAINING, MOST_VALIDATION), strict=True):
        assert len({question.id for question in part}) == len(part)
        for kind in KINDS:
            assert 0 < sum(question.kind == kind for question in part) <= most


FILE = '''\
@decorated
class Reader(Base):
    def read(self, size=-1, *, block: bool=True, "then"=None):
        """Read."""
        return self.buffer[:size]

    async def close(self, how: Mode = Mode.now, /, why: str = None): ...

@decorated(a=1)
def outer(a, b=(), c="x", *others, last=[1,
    2], none=None, **rest):
    def inner(a):
        return a
    return inner

class Both(Base, Reader): pass
'''.replace('"then"', "then")


def test_of_a_file_that_has_everything():
    found, other = questions([SourceFile("a.py", FILE, ast.parse(FILE))])
    found += other
    [context] = {question.context for question in found}
    assert context == FILE[FILE.index("class Reader") : FILE.index("\n\nclass Both")]
    assert {(question.text, question.answer, question.start) for question in found} == {
        ("Which class does Reader inherit from?", "Base", context.index("Base")),
        ("What is the default of size in read?", "-1", context.index("-1")),
        ("What is the default of block in read?", "True", context.index("True")),
        ("Which parameter follows self in read?", "size", context.index("size")),
        ("What does read return?", "self.buffer[:size]", context.index("self.buffer")),
        ("What is the default of how in close?", "Mode.now", context.index("Mode.now")),
        ("Which parameter follows self in close?", "how", context.index("how")),
        ("Which parameter follows how in close?", "why", context.index("why")),
        ("What is the default of c in outer?", '"x"', context.index('"x"')),
        ("Which parameter follows a in outer?", "b", context.index("b=()")),
        ("Which parameter follows b in outer?", "c", context.index("c=")),
        ("What does inner return?", "a", context.index("return a") + 7),
    }


@pytest.mark.parametrize(
    "text",
    [
        FILE.replace("Read.", "Lies f\u00fcr mich."),  # columns of the parser are bytes
        "\n".join(f"def one{n}(a, b):\n    pass\npass" for n in range(20)),  # one by one
        "def one(a, b):\n    pass\ndef two(a, b):\n    pass",  # too short
        "def one(a, b):\n    pass\ndef two(a, b):\n    pass\n" + 700 * "    call()\n",  # too long
    ],
)
def test_what_is_no_context(text):
    assert questions([SourceFile("a.py", text, ast.parse(text))]) == ([], [])

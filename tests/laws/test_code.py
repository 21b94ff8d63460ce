"""Laws of the code base that a reader can rely on: imports, sizes, documentation, no pickle, no reads in the loop."""

import ast
import inspect
import re
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import get_type_hints

import pytest

from finetune.config import FINETUNE
from launch.local import LOCAL
from launch.slurm.submit import SLURM
from pretrain.compose import PRETRAIN
from pretrain.registry import choices

ROOT = Path(__file__).parents[2]
PRODUCT = sorted(path for name in ("pretrain", "finetune", "launch", "conf") for path in (ROOT / name).rglob("*.py"))
PARSED = {path: ast.parse(path.read_text()) for path in PRODUCT}


def label(path: Path) -> str:
    return str(path.relative_to(ROOT))


def module_of(path: Path) -> str:
    return label(path).removesuffix(".py").replace("/", ".").removesuffix(".__init__")


MODULES = {module_of(path) for path in PRODUCT}


@cache
def imports_of(path: Path) -> set[str]:
    """Every module a file imports, at its top or inside a function."""
    return imports_among(ast.walk(PARSED[path]))


def imports_among(nodes: Iterable[ast.AST]) -> set[str]:
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


# The architecture: a module imports modules of its own row's entry and of the rows below, never upwards or sideways.
# The doors share the top row and know each other only as listed in BESIDE.
FLOORS = [
    ["doors", "finetune", "launch"],
    ["pretrain.run", "pretrain.compose"],
    ["pretrain.config", "pretrain.init_from", "pretrain.report"],
    ["pretrain.trained"],
    ["pretrain.train"],
    ["pretrain.strategy"],
    ["pretrain.objectives", "pretrain.hub"],
    ["pretrain.data", "pretrain.checkpoint", "pretrain.optim", "pretrain.guard"],
    ["pretrain.models", "pretrain.tokenizer", "pretrain.tracking"],
    ["pretrain.registry", "pretrain.distributed"],
    ["pretrain.commands", "pretrain.settings", "pretrain.files"],
    ["pretrain.errors"],
]
# The commands of `pretrain`.
DOORS = {"__main__", "prepare", "export", "sample", "evaluate", "average", "import_bin", "detour", "replay"}
FACES = {"pretrain", "finetune", "conf"}  # hold names of what lies below, which the modules there may import past
BESIDE = {("launch", "finetune")}  # entries of one row, of which the first may import the second

PLACES = {entry: floor for floor, row in enumerate(FLOORS) for entry in row}


def entry_of(module: str) -> str:
    """Return the entry of FLOORS that a module belongs to."""
    package, _, rest = module.partition(".")
    if package in {"finetune", "launch"}:
        return package
    if rest in DOORS:
        return "doors"
    return f"pretrain.{rest.partition('.')[0]}"


def own_imports(path: Path) -> set[str]:
    """Return the modules of the project that a file imports."""
    return imports_of(path) & MODULES - FACES


@pytest.mark.parametrize("path", [path for path in PRODUCT if module_of(path) not in FACES], ids=label)
def test_imports_point_down(path):
    own = entry_of(module_of(path))
    assert own in PLACES, f"{own}: the top level of pretrain/ is for doors and the composition root"
    for other in {entry_of(module) for module in own_imports(path)} - {own}:
        lower = PLACES[other] > PLACES[own]
        assert lower or (own, other) in BESIDE, f"{module_of(path)} may not import {other}"


# The same inside `finetune`; a module belongs to the longest entry that its name begins with. No task knows another.
TASKS = [f"tasks.{path.parent.name}" for path in (ROOT / "finetune" / "tasks").glob("*/__init__.py")]
FINETUNE_FLOORS = [
    ["__main__", "predict", "evaluate", "export", "report.__main__"],
    ["trained"],
    ["run"],
    ["report.model_page"],
    ["config", "init_from"],
    TASKS,
    ["tasks"],  # what tasks share
    ["answering"],
    ["evaluator", "report"],
    ["data", "model", "from_nothing"],
    ["options"],
]
FINETUNE_PLACES = {f"finetune.{entry}": floor for floor, row in enumerate(FINETUNE_FLOORS) for entry in row}


def finetune_entry_of(module: str) -> str:
    """Return the entry of FINETUNE_FLOORS that a module belongs to."""
    return max((entry for entry in FINETUNE_PLACES if f"{module}.".startswith(f"{entry}.")), key=len, default=module)


@pytest.mark.parametrize("path", [path for path in PRODUCT if module_of(path).startswith("finetune.")], ids=label)
def test_imports_inside_finetune_point_down(path):
    own = finetune_entry_of(module_of(path))
    assert own in FINETUNE_PLACES, f"{own}: the top level of finetune/ is for commands and what joins its parts"
    others = {finetune_entry_of(module) for module in own_imports(path) if module.startswith("finetune.")} - {own}
    for other in others:
        assert FINETUNE_PLACES[other] > FINETUNE_PLACES[own], f"{module_of(path)} may not import {other}"


def test_no_module_imports_itself_through_others():
    graph = {module_of(path): own_imports(path) for path in PRODUCT}
    done, under_way = set(), []

    def visit(module: str) -> None:
        assert module not in under_way, f"a circle: {' -> '.join([*under_way[under_way.index(module) :], module])}"
        if module in done:
            return
        under_way.append(module)
        for other in sorted(graph[module]):
            visit(other)
        done.add(under_way.pop())

    for module in graph:
        visit(module)


# What stands in several folders because each folder has one: its face, its command, a task's parts.
REPEATED = {"__init__", "__main__", "base", "run", "config", "export", "init_from", "evaluate", "evaluator"}
REPEATED |= {"task", "metrics", "page", "options"}


def test_a_file_name_has_one_meaning():
    folders: dict[str, list[str]] = {}
    for path in PRODUCT:
        folders.setdefault(path.stem, []).append(label(path))
    assert not {name: paths for name, paths in folders.items() if len(paths) > 1 and name not in REPEATED}


def test_the_top_level_of_pretrain_holds_doors_and_the_composition_root():
    assert len([path for path in PRODUCT if path.parent == ROOT / "pretrain"]) <= 16  # 15 beside `__init__`


def test_the_folders_of_unit_tests_mirror_the_packages():
    unit = ROOT / "tests" / "unit"
    folders = {path.parent.relative_to(unit) for path in unit.rglob("test_*.py")}
    assert folders and not [str(folder) for folder in folders if not (ROOT / folder).is_dir()]


HEAVY = {
    "accelerate",
    "datasets",
    "deepspeed",
    "matplotlib",
    "pandas",
    "rouge_score",
    "sacrebleu",
    "scipy",
    "seqeval",
    "sklearn",
    "torchao",
    "transformers",
    "wandb",
}


@pytest.mark.parametrize("path", PRODUCT, ids=label)
def test_heavy_libraries_are_imported_by_the_functions_that_need_them(path):
    assert not {name for name in imports_among(PARSED[path].body) if name.split(".")[0] in HEAVY}


COMMANDS = [path for path in PRODUCT if '\nif __name__ == "__main__"' in path.read_text()]


@pytest.mark.parametrize("path", COMMANDS, ids=label)
def test_a_command_can_be_stopped_before_it_imports_anything(path):
    body = [ast.unparse(node) for node in PARSED[path].body[1:] if "__future__" not in ast.unparse(node)]
    assert body[0] == "from pretrain.commands import start_command"
    assert body[1].splitlines() == ["if __name__ == '__main__':", "    start_command()"]


def test_only_the_entries_and_the_composition_root_see_the_root_config():
    seers = {module_of(path) for path in PRODUCT if "pretrain.config" in imports_of(path)}
    entries = {"pretrain.__main__", "pretrain.compose", "pretrain.run", "pretrain.prepare"}
    assert seers <= entries | FACES


# Modules that ask objects of libraries, of plugins or of any module for what only some of them have.
ASKERS = {
    "pretrain.data.vocabulary",  # tokenizers
    "pretrain.distributed.recorder",  # torch's flight recorder
    "pretrain.distributed.world",  # the C library
    "pretrain.files",  # types as they are annotated
    "pretrain.models.attention.flash_versions",  # torch
    "pretrain.optim.base",  # torch's protocol of loss scaling
    "pretrain.optim.muon",
    "pretrain.report.wandb_sync",  # options of several commands
    "pretrain.settings.alternatives",  # dataclasses of settings
    "pretrain.settings.composing",  # Hydra's errors
    "pretrain.strategy.activations",  # parts of blocks
    "pretrain.strategy.fsdp2",  # parts of models
    "pretrain.strategy.zero_engine",  # DeepSpeed
    "pretrain.strategy.zero_nvme",
}


def test_what_some_of_our_kinds_have_is_declared_not_asked_for_by_name_with_a_default():
    def asks(node: ast.AST) -> bool:
        return isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr" and len(node.args) == 3

    assert {module_of(path) for path in PRODUCT if any(map(asks, ast.walk(PARSED[path])))} == ASKERS


@pytest.mark.parametrize("path", PRODUCT, ids=label)
def test_sizes(path):
    assert len(path.read_text().splitlines()) <= 400
    for node in ast.walk(PARSED[path]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno + 1 <= 60, f"{node.name} is longer than a screen"


def test_no_drawers_and_no_shadowed_libraries():
    banned = {"utils", "helpers", "common", "misc", "deepspeed", "datasets", "wandb", "accelerate", "torch"}
    assert not [label(path) for path in PRODUCT if path.stem in banned]


@pytest.mark.parametrize("path", PRODUCT, ids=label)
def test_docstrings(path):
    if path.read_text().strip():
        assert ast.get_docstring(PARSED[path]), "a module says what lives in it"
    for node in PARSED[path].body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} is public and has no docstring"


def config_classes() -> set[type]:
    """Every dataclass that a config file can fill: the roots, what they hold, and every registered choice."""
    roots = (PRETRAIN, FINETUNE, LOCAL, SLURM)
    for root in roots:
        root.register()
    found, waiting = set(), [*(root.schema for root in roots), *choices()]
    while waiting:
        node = waiting.pop()
        if is_dataclass(node) and node not in found:
            found.add(node)
            waiting += [kind for kind in get_type_hints(node).values() if isinstance(kind, type)]
    return found


@pytest.mark.parametrize("node", sorted(config_classes(), key=lambda node: node.__qualname__))
def test_config_fields_are_documented(node):
    assert node.__doc__ and not node.__doc__.startswith(f"{node.__name__}(")
    body = ast.parse(inspect.getsource(node)).body[0].body
    lines = inspect.getsource(node).splitlines()
    inherited = {field.name for base in node.__mro__[1:] if is_dataclass(base) for field in fields(base)}
    for field in body:
        if not isinstance(field, ast.AnnAssign) or "ClassVar" in ast.unparse(field.annotation):
            continue
        slice_of_its_own = is_dataclass(get_type_hints(node)[field.target.id]) or "MISSING" in ast.unparse(field)
        if field.target.id in inherited or slice_of_its_own:
            continue
        assert "  # " in lines[field.end_lineno - 1], f"{node.__name__}.{field.target.id}: say what it is, and its unit"


def test_the_loop_fits_on_one_screen_and_reads_nothing_back():
    path = ROOT / "pretrain" / "train" / "loop.py"
    [train] = [node for node in PARSED[path].body if isinstance(node, ast.FunctionDef) and node.name == "train"]
    assert train.end_lineno - train.lineno + 1 <= 60
    reads = re.compile(r"\.item\(|\.tolist\(|\.cpu\(|\.numpy\(|float\(|synchronize\(")
    assert not reads.findall(path.read_text())


READS_PICKLES = "pretrain/hub/pickled.py"  # old checkpoints, through torch's reader of tensors alone


@pytest.mark.parametrize("path", PRODUCT, ids=label)
def test_nothing_unpickles_or_runs_text(path):
    assert not {name for name in imports_of(path) if name.split(".")[0] in {"pickle", "dill", "cloudpickle", "shelve"}}
    calls = {ast.unparse(node.func) for node in ast.walk(PARSED[path]) if isinstance(node, ast.Call)}
    keywords = {ast.unparse(node) for node in ast.walk(PARSED[path]) if isinstance(node, ast.keyword)}
    if label(path) == READS_PICKLES:
        assert "weights_only=True" in keywords
        calls.remove("torch.load")
    assert not calls & {"torch.load", "torch.save", "eval", "exec", "os.system", "os.popen", "hydra.utils.instantiate"}
    assert not keywords & {"shell=True", "trust_remote_code=True", "weights_only=False", "allow_pickle=True"}


NOT_TEXT = {"os", "tokenize", "gzip", "bz2", "lzma", "build_opener(_Redirects)"}  # descriptors, bytes, pages


def opens_text(call: ast.Call) -> bool:
    """Whether a call opens, reads or writes a file, or runs a program, as text."""
    owner, _, name = ast.unparse(call.func).rpartition(".")
    modes = [each.value for each in call.args if isinstance(each, ast.Constant) and isinstance(each.value, str)]
    if name in {"open", "fdopen"}:  # also of a class of ours, which is something else
        other = name == "open" and (owner in NOT_TEXT or owner[:1].isupper())
        return not other and not any("b" in mode for mode in modes)
    if name.endswith("TemporaryFile"):
        return any("b" not in mode for mode in modes)
    runs = any(each.arg == "text" and ast.unparse(each.value) == "True" for each in call.keywords)
    return runs or name in {"read_text", "write_text", "FileHandler"}


@pytest.mark.parametrize("path", [*PRODUCT, *(ROOT / "examples").glob("*.py")], ids=label)
def test_texts_are_utf8_whatever_the_locale_says(path):
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    for call in filter(opens_text, calls):
        assert "encoding" in {each.arg for each in call.keywords}, f"line {call.lineno}: name the encoding"


def test_no_machine_paths():
    tracked = [path for pattern in ("*.py", "*.yaml", "*.md", "*.toml") for path in ROOT.rglob(pattern)]
    ours = [path for path in tracked if not {".venv", "runs", "corpora"} & set(path.relative_to(ROOT).parts)]
    places = re.compile(r"/work/|/home/|/root/|\.\./shared")
    assert not [label(path) for path in ours if path != Path(__file__) and places.search(path.read_text())]

"""Laws of the environment: what the code imports is installed by pyproject.toml, not by chance on one machine."""

import ast
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
FOLDERS = {"pretrain", "finetune", "launch", "conf", "tests", "bench", "examples"}
OURS = FOLDERS | {path.stem for path in (ROOT / "tests").rglob("*.py")}  # tests import their neighbours by name alone
TYPES = {"_typeshed"}  # known to the type checker alone
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
INSTALLED = packages_distributions()  # distributions of a module's name


def needed(requirements: list[str]) -> set[str]:
    """Return the names of distributions that come with these requirements, their own requirements among them."""
    found: dict[str, set[str]] = {}  # extras asked for
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        wanted = waiting.pop()
        name, extras = canonicalize_name(wanted.name), wanted.extras | {""}
        if extras <= found.get(name, set()):
            continue
        found[name] = found.get(name, set()) | extras
        try:
            own = requires(name) or []
        except PackageNotFoundError:
            continue  # for another platform
        waiting += [item for item in map(Requirement, own) if applies(item, extras)]
    return set(found)


def applies(requirement: Requirement, extras: set[str]) -> bool:
    return requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras)


def imported(folders: list[str]) -> Iterator[tuple[str, str]]:
    """Yield file and top-level name of every import of a module that is neither Python's nor ours."""
    for path in (file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            for top in {name.partition(".")[0] for name in names} - OURS - sys.stdlib_module_names:
                yield str(path.relative_to(ROOT)), top


@pytest.mark.parametrize(
    ("folders", "extras"),
    [
        (["pretrain", "finetune", "launch", "conf"], ["tensorboard", "fp8", "vision"]),
        (["tests", "examples"], ["tensorboard", "fp8", "vision", "dev"]),
    ],
    ids=["product", "tests"],
)
def test_imports_are_installed_by_the_project(folders, extras):
    core = PROJECT["dependencies"] + [line for extra in extras for line in PROJECT["optional-dependencies"][extra]]
    known = needed([line for line in core if not line.startswith("headwater")])
    strangers = {
        f"{file}: {name}"
        for file, name in imported(folders)
        if name not in TYPES and not {canonicalize_name(dist) for dist in INSTALLED.get(name, [])} & known
    }
    assert not strangers

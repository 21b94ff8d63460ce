"""Plugins: modules of the user's own that register choices, such as models, sources or trackers.

Holds their import. Only what is typed, or what a file of the user's own names, may come here: a run or a checkpoint
names modules too, and importing those would run the code of whoever wrote it.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path

from hydra.core.config_store import ConfigStore

from pretrain.errors import ConfigError

_imported: set[str] = set()


def import_plugins(names: Iterable[str]) -> None:
    """Import modules of the current directory or of installed packages, each once.

    Raises `ConfigError` for one that does not exist, that fails, by file and line, and that registers nothing.
    """
    for name in names:
        if name not in _imported:
            _import(name)
            _imported.add(name)


def add_plugins_option(parser: argparse.ArgumentParser) -> None:
    """Add `--plugins MODULE` to the parser of a command that reads a run."""
    parser.add_argument(
        "--plugins",
        action="append",
        type=_imported_plugin,
        default=[],
        metavar="MODULE",
        help="a module of your own that the run was made with; may be repeated",
    )


def _imported_plugin(name: str) -> str:
    try:
        import_plugins([name])
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return name


def _import(name: str) -> None:
    if not all(part.isidentifier() for part in name.split(".")):
        module = name.removesuffix(".py").replace("/", ".").strip(".")
        meant = f"; did you mean {module}?" if module.replace(".", "_").isidentifier() else ""
        raise ConfigError(f"plugins: {name!r} is not the name of a module; that of a file my/part.py is my.part{meant}")
    here = str(Path.cwd())
    if not {"", here} & set(sys.path):  # a command that is no `python -m`
        sys.path.append(here)
    importlib.invalidate_caches()
    before, loaded = _registered(), set(sys.modules)
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and f"{name}.".startswith(f"{error.name}."):
            rule = f"no such module, neither in {here} nor among installed packages; mend the name, or go to its folder"
            raise ConfigError(f"plugins: {name}: {rule}") from None
        raise ConfigError(f"plugins: {name}: {_failure(error)}") from None
    except (Exception, SystemExit) as error:
        raise ConfigError(f"plugins: {name}: {_failure(error)}") from None
    if _registered() == before and not _derives({*sys.modules} - loaded):
        rule = "registers nothing: a plugin has classes below @register(GROUP, NAME) of pretrain.registry"
        raise ConfigError(f"plugins: {name}: {rule}; drop it, or see docs/extending.md")


def _registered() -> int:
    """Return the number of choices of all groups."""

    def leaves(tree: object) -> int:
        return sum(map(leaves, tree.values())) if isinstance(tree, dict) else 1

    return leaves(ConfigStore.instance().repo)


def _derives(names: set[str]) -> bool:
    """Return whether one of these modules has a class that derives from one of ours, as a Hugging Face family does."""
    classes = [each for name in names for each in vars(sys.modules[name]).values() if isinstance(each, type)]
    bases = [base for each in classes if each.__module__ in names for base in each.__mro__[1:]]
    return any(base.__module__.partition(".")[0] in ("pretrain", "finetune") for base in bases)


def _failure(error: BaseException) -> str:
    """Return what went wrong while a module was imported, and in which line of which file."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}: {type(error).__name__}: {error.msg}; mend the module"
    frames: Sequence[traceback.FrameSummary] = traceback.extract_tb(error.__traceback__)
    ours = str(Path(__file__).parents[1])  # a refusal of ours is about the line that called
    theirs = [each for each in frames if not each.filename.startswith((ours, "<frozen importlib"))]
    theirs = [each for each in theirs if Path(each.filename).parent.name != "importlib"]
    place = f"{theirs[-1].filename}:{theirs[-1].lineno}: " if theirs else ""
    what = str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
    return f"{place}{what}; mend the module"

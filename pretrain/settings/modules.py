"""Modules that are typed behind `python -m`: one that does nothing when it is run is refused, not silent.

Called by the packages while Python looks for the module, before it runs. Free of torch and Hydra.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pretrain.errors import ConfigError
from pretrain.errors.nearest import nearest

ROOT = Path(__file__).parents[2]
PACKAGES = ("pretrain", "finetune", "launch")


def check_is_command() -> None:
    """Exit with 2 if the module behind this process's `-m` is one of ours and no command."""
    words = sys.orig_argv
    following = zip(words, [*words[1:], ""], strict=True)
    name = next((word.removeprefix("-m") or after for word, after in following if word.startswith("-m")), "")
    place = ROOT.joinpath(*name.split("."))
    file = place.with_name(f"{place.name}.py")
    if name.partition(".")[0] not in PACKAGES or _runs(file) or _runs(place / "__main__.py"):
        return
    known = [_name(path) for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")) if _runs(path)]
    there = place.is_dir() or file.is_file()
    what = "holds code for commands, and does nothing by itself" if there else f"no such module{nearest(name, known)}"
    print(f"{name}: {what} (commands: {', '.join(known)})", file=sys.stderr)
    sys.exit(ConfigError.exit_code)


def _runs(file: Path) -> bool:
    """Whether a file does something when it is run."""
    return file.is_file() and "\nif __name__ == " in file.read_text(encoding="utf-8")


def _name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")

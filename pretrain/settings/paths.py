"""Paths as users type them."""

from __future__ import annotations

import os
import re
from pathlib import Path

from pretrain.errors import check

VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)\})", re.ASCII)


def is_there(path: str | Path) -> bool:
    """Return whether something exists under a name; nothing does under one that is too long, or no name at all."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


def expanded(path: str, key: str) -> str:
    """Return a path or URL, typed by the user as the setting `key`, with `~`, `~user`, `$NAME` and `${NAME}` filled in.

    What exists under the name as it is typed keeps its dollars. Raises `ConfigError` for a user or a variable that does
    not exist. Not for names out of somebody else's files: those could ask for any variable.
    """

    def value(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        rule = "this environment variable is not set, or empty; set it, or write its value out"
        check(bool(os.environ.get(name)), key, found[0], rule)
        return os.environ[name]

    if os.path.lexists(path):
        return path
    if path.startswith("~"):
        path = os.path.expanduser(path)  # noqa: PTH111 (a Path would join the slashes of a URL)
        rule = "there is no user of this name; a file whose name begins so is written ./~"
        check(not path.startswith("~"), key, path, rule)
    return VARIABLE.sub(value, path)

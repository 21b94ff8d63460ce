"""The name that was meant, for messages about one that is not known. Free of torch and Hydra."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(key: str, known: Iterable[str]) -> str:
    """Return "; did you mean X?" with the known key that is spelt most like `key`, or nothing."""
    known = list(known)
    leaf = {name.rpartition(".")[2]: name for name in known}
    found = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    found = found or [leaf[name] for name in difflib.get_close_matches(key.rpartition(".")[2], leaf, n=1, cutoff=0.6)]
    return f"; did you mean {found[0]}?" if found else ""

"""Removing secrets from a configuration before it leaves the process.

Holds the patterns; whoever sends or logs a configuration calls `redacted`.
"""

from __future__ import annotations

import re
from typing import Any

REDACTED = "<redacted>"

# Whole words of a key, so that `tokenizer` and `num_tokens` stay; special tokens of a vocabulary stay, too.
_SECRET_KEY = re.compile(r"(?<![a-z])(key|token|secret|password|passwd|credentials?)$", re.IGNORECASE)
_SPECIAL_TOKEN = re.compile(r"(?<![a-z])(bos|eos|unk|pad|cls|sep|mask|end|start)_token$", re.IGNORECASE)
_SECRET_VALUE = re.compile(
    r"(?<=://)[^/@\s]+(?=@)"  # user:password@ in a URL
    r"|\bhf_[A-Za-z0-9]{20,}"  # Hugging Face
    r"|\b(?:gh[oprsu]_|github_pat_)\w{20,}"  # GitHub
    r"|\bwandb_v\d+_\w{20,}"  # W&B
    r"|\bAKIA[A-Z0-9]{16}\b"  # AWS
)


def redacted(value: object, key: str = "") -> Any:
    """Return plain values (dicts, lists, scalars) with secrets replaced, known by their key or by their form."""
    if isinstance(value, dict):
        return {name: redacted(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(item, key) for item in value]
    if not isinstance(value, str) or not value:
        return value
    if _SECRET_KEY.search(key) and not _SPECIAL_TOKEN.search(key):
        return REDACTED
    return _SECRET_VALUE.sub(REDACTED, value)


def looks_secret(value: str) -> bool:
    """Whether a value looks like a credential; 40 hexadecimal digits are W&B's classic API key."""
    return bool(_SECRET_VALUE.search(value) or re.fullmatch(r"(local-)?[0-9a-f]{40}", value))

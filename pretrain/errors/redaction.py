"""Secrets, known by their key, by their look, or because the environment holds them under such a key.

Whoever writes, sends or says something that users typed calls `redacted`; errors do so themselves.
"""

from __future__ import annotations

import os
import re
from functools import cache
from typing import Any
from urllib.parse import unquote

REDACTED = "<redacted>"

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")  # of api_key, apiKey and API_KEY
_SECRET_ENDING = re.compile(
    r"(^|\W)(token|secret|password|passwd|pwd|passphrase|credentials?|auth|authorization|sas|signature|sig"
    r"|connection string|apikey|accesskey"
    r"|(access|account|api|auth|encryption|private|secret|signing|ssh|storage) key( id)?)$"
)
_PART_OF_A_VOCABULARY = re.compile(r"\b(bos|eos|unk|pad|cls|sep|mask|end|start|special) token$")
_INTERPOLATION = re.compile(r"\$\{[^}]*\}")  # names a secret and holds none
_LOOK = re.compile(
    r"(?<=://)[^\s/@:]*:(?!\d{1,5}(?:[/?#\s]|$))[^\s\"'<>]*@"  # user:password@ in a URL, also with / and @ in it
    r"|(?<=://)[^\s/@]+@"  # user@, or a token
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*-----|$)"
    r"|\bBearer\s+[\w.~+/=-]{8,}"
    r"|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"  # JSON web token
    r"|\bhf_[A-Za-z0-9]{20,}"  # Hugging Face
    r"|\b(?:gh[oprsu]_|github_pat_|glpat-)\w{20,}"  # GitHub, GitLab
    r"|\bwandb_v\d+_\w{20,}"  # W&B
    r"|\bA(?:KIA|SIA)[A-Z0-9]{16}\b"  # AWS
    r"|\bxox[a-z]-[\w-]{10,}"  # Slack
    r"|\bsk-(?=[\w-]*\d)(?=[\w-]*[A-Z])[\w-]{20,}"  # OpenAI, Anthropic
    r"|\bAIza[\w-]{30,}|\bya29\.[\w-]{20,}",  # Google
    re.DOTALL,
)
_PASSWORD_OF_URL = re.compile(r"[\w+.-]+://[^\s/@:]*:([^\s/@]+)@[^\s@]")
_ASSIGNED = re.compile(  # key=value, as in settings and URLs, and "key": value, as in JSON and in headers
    r"""(?P<shown>\bAuthorization:\s*\w+\s+|[?&]key=)[^\s&]+"""
    r"""|(?P<key>[\w-]+)(?P<sign>=|["']\s*:\s*)(?P<value>\$\{[^}]*\}|"[^"]*"|'[^']*'|[^\s,;&"')\]}]*[^\s,;&"')\]}:])""",
    re.IGNORECASE,
)


def redacted(value: object, key: str = "") -> Any:
    """Return plain values (dicts, lists, scalars) without their secrets; in a text, what is no secret stays."""
    if isinstance(value, dict):
        return {name: redacted(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(item, key) for item in value]
    if value in (None, "") or isinstance(value, bool) or _INTERPOLATION.fullmatch(str(value)):
        return value
    if _is_secret(key):
        return REDACTED
    return _without_secrets(value) if isinstance(value, str) else value


def looks_secret(value: str, key: str = "") -> bool:
    """Whether a value is a credential, or has one in it; 40 hexadecimal digits are W&B's classic API key."""
    return redacted(value, key) != value or bool(re.fullmatch(r"(local-)?[0-9a-f]{40}", value))


@cache
def _is_secret(key: str) -> bool:
    """Whether the last words of a key say so: `tokenizer`, `num_tokens`, `sort_key` and `eos_token` do not."""
    words = " ".join(_WORDS.findall(key.rpartition(".")[2])).lower()
    return bool(_SECRET_ENDING.search(words)) and not _PART_OF_A_VOCABULARY.search(words)


def _without_secrets(text: str) -> str:
    def hidden(found: re.Match[str]) -> str:
        if found["shown"]:
            return f"{found['shown']}{REDACTED}"
        return f"{found['key']}{found['sign']}{redacted(found['value'], found['key'])}"

    for secret in _of_environment():
        text = text.replace(secret, REDACTED)
    return _ASSIGNED.sub(hidden, _LOOK.sub(_hidden_look, text))


def _hidden_look(found: re.Match[str]) -> str:
    return f"{REDACTED}@" if found[0].endswith("@") else REDACTED


def _of_environment() -> list[str]:
    """Return the values of variables such as HF_TOKEN, for a setting may be `${oc.env:HF_TOKEN}`, longest first.

    Of an address, as in HTTPS_PROXY, it is the password, also as libraries say it: decoded, and without the address.
    """
    found: set[str] = set()
    for key, value in os.environ.items():
        if not key.endswith("PWD") and _is_secret(key):
            found.add(value)
        scheme = "" if "://" in value or not key.lower().endswith("_proxy") else "http://"  # that a proxy may leave out
        if address := _PASSWORD_OF_URL.match(scheme + value):
            found |= {address[1], unquote(address[1])}
    return sorted((value for value in found if len(value) >= 8), key=len, reverse=True)

"""Checkpoints from the Hugging Face hub: downloaded by one rank, read from the cache by all.

Holds names and the download; `weights` reads the files.
"""

from __future__ import annotations

import re
from pathlib import Path

from pretrain.errors import ConfigError
from pretrain.tokenizer.base import PAIR_FILES

_PART = r"\w[\w.-]*"
_NAME = re.compile(rf"((?P<org>{_PART})/)?{_PART}(?P<revision>@{_PART}(/{_PART})*)?", re.ASCII)
_CHATS = ["tokenizer_config.json", "chat_template.jinja"]  # how conversations are written as text
_FACTS = [
    *("config.json", "generation_config.json", "tokenizer.json", *PAIR_FILES, *_CHATS, "adapter_config.json"),
    "README.md",  # whose card names the licence
]
_WEIGHTS = ["model*.safetensors", "model.safetensors.index.json", "adapter_model.safetensors"]  # pickles stay there
_FILES = [*_FACTS, *_WEIGHTS]


def is_hub_name(text: str) -> bool:
    """Return whether this is `org/name` (or `name`, as old ones are), perhaps with `@revision`, and not a path.

    Anything that exists is a path, and so is a name without a revision that would lie in an existing directory.
    """
    found = _NAME.fullmatch(text)
    if found is None or Path(text).exists():
        return False
    return found["revision"] is not None or found["org"] is None or not Path(found["org"]).is_dir()


def fetch(name: str, typed: str, *, weights: bool = True) -> str:
    """Download into the cache and return the name with its commit, `org/name@commit`.

    Without `weights` only configuration and tokenizer. Raises `ConfigError`, which begins with what was `typed`, if
    neither the hub nor the cache has it.
    """
    files = _FILES if weights else _FACTS
    return f"{name.partition('@')[0]}@{_snapshot(name, typed, only_cached=False, files=files).name}"


def cached(name: str, typed: str) -> Path:
    """Return the directory of a downloaded checkpoint, perhaps without weights.

    Raises `ConfigError` where the cache does not have it.
    """
    return _snapshot(name, typed, only_cached=True, files=_FACTS)


def _snapshot(name: str, typed: str, *, only_cached: bool, files: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_OFFLINE

    repository, _, revision = name.partition("@")
    local = only_cached or HF_HUB_OFFLINE  # versions before 2 ask the hub for the files of a commit all the same
    try:
        found = snapshot_download(repository, revision=revision or None, allow_patterns=files, local_files_only=local)
    except Exception as error:  # names, proxies, connections, disks: each from a library of its own
        rule = "no such directory, and not to be had from the Hugging Face hub or its cache (HF_HOME)"
        fix = "name a directory, or fetch it where the hub is reached"
        raise ConfigError(f"{typed}: {rule}: {' '.join(str(error).split())}; {fix}") from None
    return Path(str(found))

"""Released checkpoints from the Hugging Face hub: fetched by one rank, read from its cache by all.

Holds the fetching only; what is in the files is `huggingface`'s to read.
"""

from __future__ import annotations

import re
from pathlib import Path

from pretrain.distributed import World
from pretrain.errors import ConfigError

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")  # org/name
_FILES = ["config.json", "tokenizer.json", "model*.safetensors", "model.safetensors.index.json"]  # pickles stay there


def fetch(name: str, world: World) -> Path:
    """Return the directory of a checkpoint `org/name`, fetched unless it is in the cache. A collective.

    Raises `ConfigError` on all ranks where rank 0 cannot reach the hub and has nothing in its cache, and on a rank
    that does not see rank 0's cache.
    """
    refusal = _snapshot(name, only_cached=False)[1] if world.is_first else None
    refusal = world.gather(refusal)[0]
    directory = None
    if refusal is None:
        directory, refusal = _snapshot(name, only_cached=True)
    if directory is None:
        rule = "no such directory, and not to be had from the Hugging Face hub or its cache (HF_HOME)"
        raise ConfigError(
            f"init_from={name}: {rule}: {refusal}; name a directory, or fetch it where the hub is reached"
        )
    return directory


def _snapshot(name: str, *, only_cached: bool) -> tuple[Path | None, str | None]:
    """Return the directory, or why there is none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        found = snapshot_download(name, allow_patterns=_FILES, local_files_only=only_cached)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        return None, " ".join(str(error).split())
    return Path(str(found)), None

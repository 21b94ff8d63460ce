"""What lies on a mirror, and how one is named.

Holds the layout alone: `store` has the bytes, `uploads` when they are written, `restore` when they are read. On a
mirror, each step is a folder that looks like a run directory with this one checkpoint, and could be copied back as one:

    URL/RUN/step-00001000/mirror.json                               written last: size and SHA-256 of all others
    URL/RUN/step-00001000/run.json, config.yaml, metrics.jsonl ...  as they were when the step was committed
    URL/RUN/step-00001000/checkpoints/step-00001000/manifest.json ...
"""

from __future__ import annotations

import re
from typing import NamedTuple, TypedDict

from pretrain.checkpoint.load import Listed
from pretrain.data.sources.remote import is_remote, without_credentials
from pretrain.errors import ConfigError, check
from pretrain.tokenizer.base import PAIR_FILES
from pretrain.tracking.jsonl import METRICS_FILE, SAMPLES_FILE, SKIPS_FILE
from pretrain.train.run_dir.base import CHECKPOINTS, CONFIG_FILE, DETOURS_FILE, TOKENIZER_FILE, TRACE_FILE
from pretrain.train.run_dir.record import RECORD_FILE

KEY = "checkpoint.mirror"
FORMAT = 1
SEAL_FILE = "mirror.json"
BESIDE = (
    *(RECORD_FILE, CONFIG_FILE, TOKENIZER_FILE, *PAIR_FILES),
    *(METRICS_FILE, SAMPLES_FILE, SKIPS_FILE, TRACE_FILE, DETOURS_FILE),
)
"""Files of a run directory that are copied with a step, where they are there."""

_STEP_FILE = re.compile(rf"{CHECKPOINTS}/(step-\d{{8}})/\w[\w.-]*", re.ASCII)


class Seal(TypedDict):
    """`mirror.json` of a step."""

    format: int
    files: dict[str, Listed]  # by path in the run directory


class Found(NamedTuple):
    """The steps on a mirror, by name, oldest first."""

    complete: list[str]
    torn: list[str]  # an upload that did not come to its end


def check_mirror(url: str | None) -> None:
    """Raise `ConfigError` for a URL that no store can be opened for. Connects to nothing."""
    if url is None:
        return
    check(is_remote(url), KEY, url, "a URL, such as s3://bucket/folder or file:///disk/folder")
    from fsspec import get_filesystem_class
    from fsspec.registry import known_implementations

    protocol, shown = url.partition("://")[0].lower(), without_credentials(url)
    check(protocol not in ("http", "https"), KEY, shown, "web servers take no files; name a store such as s3://")
    try:
        get_filesystem_class(protocol)
    except ValueError:
        rule = "fsspec knows no such store; there are s3, gs, abfs, sftp, file and others"
        raise ConfigError(f"{KEY}={shown}: {protocol}://: {rule}") from None
    except ImportError as error:
        package = known_implementations[protocol]["class"].partition(".")[0]
        package = "what it names" if package == "fsspec" else package
        raise ConfigError(f"{KEY}={shown}: not installed here ({error}); pip install {package}") from None


def check_names(step: str, seal: Seal) -> Seal:
    """Return what is listed of a step. Raises `ValueError` for files that are none of a run's: they are written."""
    for name in seal["files"]:
        found = _STEP_FILE.fullmatch(name)
        if name not in BESIDE and not (found and found[1] == step):
            raise ValueError(f"{SEAL_FILE} lists {name!r}, no file of a run with {step}")
    return seal

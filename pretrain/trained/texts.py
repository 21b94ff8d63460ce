"""Texts as a user names them, file by file: which source of `data` reads each.

Holds the choice; what a source does is its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pretrain.data.sources.base import PreparedSource, SourceConfig, TextSource
from pretrain.data.sources.locations import is_remote
from pretrain.data.sources.readers import JSON_LINES, file_format
from pretrain.data.sources.structured import HubSource, JsonLinesSource, ParquetSource
from pretrain.errors import check
from pretrain.hub.download import is_hub_name
from pretrain.registry import nearest

_OF_FILES = {"text": TextSource, "jsonl": JsonLinesSource, "parquet": ParquetSource}  # one reads any number of them
KINDS = (*_OF_FILES, "hub", "prepared")


def sources_of(texts: Sequence[str | Path | SourceConfig], kind: str | None = None) -> dict[str, SourceConfig]:
    """Return the sources of files, folders, URLs, patterns and hub names, each under a name.

    `kind` is that of all of them; None: files are known by their suffixes and a corpus by its manifest; what is no file
    and looks like `org/name` is a data set of the hub; all others are text. Sources are taken as they are.
    """
    rule = f"must be one of {', '.join(KINDS)}{nearest(str(kind), KINDS)}"
    check(kind is None or kind in KINDS, "source", kind, rule)
    files: dict[str, list[str]] = {}
    sources: dict[str, SourceConfig] = {}
    for number, text in enumerate(texts, 1):
        if isinstance(text, SourceConfig):
            sources[f"source-{number}"] = text
        elif (known := kind or _kind(str(text))) in _OF_FILES:
            files.setdefault(known, []).append(str(text))
        elif known == "prepared":
            sources[f"prepared-{number}"] = PreparedSource(path=str(text))
        else:
            name, _, revision = str(text).partition("@")
            sources[f"hub-{number}"] = HubSource(path=name, revision=revision or None)
    return {known: _OF_FILES[known](paths=paths) for known, paths in files.items()} | sources


def _kind(text: str) -> str:
    """Return the kind of source that reads a text. Raises `ConfigError` for a folder of several kinds."""
    folder, suffix = Path(text), file_format(text)
    if (folder / "manifest.json").is_file():
        return "prepared"
    if any((folder / name).is_file() for name in ("state.json", "dataset_dict.json")):  # of `save_to_disk`
        return "hub"
    if folder.is_dir():
        kinds = {_kind(str(file)) for file in folder.rglob("[!.]*") if file.is_file()}
        rule = f"holds files of {' and '.join(sorted(kinds))}; name those of one kind, for example by a pattern"
        check(len(kinds) <= 1, "the folder", text, rule)
        return next(iter(kinds), "text")
    if suffix in JSON_LINES or suffix == ".parquet":
        return "parquet" if suffix == ".parquet" else "jsonl"
    return "hub" if "/" in text and not is_remote(text) and is_hub_name(text) else "text"

"""What a run wrote of itself: `run.json` and `config.yaml`, read with suspicion by whoever uses the run.

Holds reading alone; `base` writes them. Free of torch.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any, TypedDict

from omegaconf.errors import OmegaConfBaseException

from pretrain.errors import ConfigError
from pretrain.files import hash_file, read_json
from pretrain.registry import choices, choices_in, flattened, rebuilt
from pretrain.settings.yaml_files import read_settings

RECORD_FILE = "run.json"
CONFIG_FILE = "config.yaml"
READERS = {
    "pretrain": "python -m pretrain.report, .evaluate, .sample and .export",
    "finetune": "python -m finetune.report, .predict, .evaluate and .export",
}  # of the runs of each program
_SCHEMA = re.compile(rb"\b(pretrain|finetune)_schema\b")  # the first of a configuration's defaults

log = logging.getLogger(__name__)


class RunRecord(TypedDict, total=False):
    """`run.json`: what other commands want to know of a run. Runs of older versions lack some of it."""

    name: str
    versions: dict[str, str]
    mfu: str  # what is meant by it
    exit: int | None  # null: it runs, or was killed
    init_from: str  # as it was found
    average: str  # of a run that `pretrain.average` made: of what its weights are the mean
    branch: dict[str, Any]  # of a run that branched off another: its `run`, the `step` and whether `data` continue
    network: dict[str, Any]  # `choice` and the values of a registered configuration
    parameters: int
    parameters_learnt: int
    flops_per_token: float
    host: str
    ranks: int
    micro_batch: dict[str, Any]  # that was found: its `size` in sequences, and for which ranks, devices and settings
    corpora: dict[str, str]  # source -> directory
    records: dict[str, int]  # of fine-tuning: training and validation
    chat_template: dict[str, Any] | None  # of fine-tuning on messages: how they become text
    vocab_size: int
    document_frame: tuple[list[int], list[int]]  # ids before and after a document
    mask: int | None
    decoder_start: int | None  # id that the decoder of an encoder-decoder sees first
    generation: (
        dict[str, Any] | None
    )  # of a run that began from other weights: what generation_config.json says of the rules of texts
    names: list[str]  # of a head's outputs
    best_step: int
    config: str  # SHA-256 of config.yaml
    steps: dict[str, str]  # name of each step that should be there -> SHA-256 of its manifest
    notes: list[str]  # what was lost, and what a setting waived


def program_of(run: Path) -> str | None:
    """Return the program that wrote a run's config.yaml, "pretrain" or "finetune"; None if nothing says so."""
    path = run / CONFIG_FILE
    if not path.is_file():
        return None
    with path.open("rb") as file:
        found = _SCHEMA.search(file.read(4096))
    return found[1].decode() if found else None


def read_record(run: Path, *needed: str) -> dict[str, Any]:
    """Return a `RunRecord` that has the `needed` entries. Raises `ConfigError` for a directory without one."""
    path = run / RECORD_FILE
    try:
        record = read_json(path, RunRecord)
        if missing := [key for key in needed if key not in record]:
            raise ValueError(f"it lacks {missing[0]!r}")
        size = record.get("vocab_size", 1)
        if not 0 < size <= 2**32:
            raise ValueError(f"vocab_size is {size}")
        frame = record.get("document_frame", ())
        ids = [*(token for side in frame for token in side), record.get("mask") or 0]
        if wrong := [token for token in ids if not 0 <= token < size]:
            raise ValueError(f"id {wrong[0]} is not below vocab_size")
        return record
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not readable ({error}); name a run directory such as runs/demo") from None


def choices_of(cfg: Any) -> list[dict[str, str]]:
    """Return the choices of a typed configuration, as Hydra's defaults name them."""
    return [{group if key == group else f"{group}@{key}": name} for key, group, name in choices_in(cfg)]


def read_config(run: Path) -> dict[str, Any]:
    """Return the values of a run's `config.yaml` by dotted key, none without one. Raises `ConfigError` if damaged."""
    return flattened(read_nested_config(run))


def read_nested_config(run: Path) -> dict[str, Any]:
    """Return what a run's `config.yaml` holds, nothing without one. Raises `ConfigError` if damaged."""
    path = run / CONFIG_FILE
    if not path.exists():
        return {}
    return read_settings(path)


def warn_of_changed_config(run: Path) -> None:
    """Warn of a `config.yaml` that is not the one that the run wrote."""
    path, known = run / CONFIG_FILE, read_record(run).get("config") if (run / RECORD_FILE).exists() else None
    if known is not None and (not path.is_file() or hash_file(path) != known):
        log.warning("%s is not as the run wrote it: what is read there may not be what it trained with", path)


def check_written_by(program: str, run: Path) -> None:
    """Raise a `ConfigError` that says what reads a run, if another program than this one wrote its configuration."""
    warn_of_changed_config(run)
    schemas = [f"{name}_schema" for name in READERS if name != program]
    defaults = read_nested_config(run).get("defaults")
    for entry in defaults if isinstance(defaults, list) else []:
        if entry in schemas:
            other = entry.removesuffix("_schema")
            raise ConfigError(f"{run}: a run of python -m {other}, none of python -m {program}; use {READERS[other]}")


def made_with(run: Path) -> str:
    """Return what to type for a run that was made with plugins, which its own files may not have imported; else ""."""
    held = read_nested_config(run).get("plugins")
    names = [str(name) for name in held] if isinstance(held, list) else []
    options = " ".join(f"--plugins {name}" for name in names)
    setting = f"plugins=[{','.join(names)}]"
    return f"the run was made with {setting}: if you trust them, add {options}, or that setting" if names else ""


def choice_of(run: Path, group: str) -> Any:
    """Return the object that a run's config.yaml chose of a group, from its values there. Raises `ConfigError`."""
    config, path = read_nested_config(run), run / CONFIG_FILE
    defaults = config.get("defaults")
    chosen = [each[group] for each in defaults or [] if isinstance(each, dict) and group in each]
    if not chosen or not isinstance(config.get(group), dict):
        raise ConfigError(f"{path}: chooses no {group}; name a run directory such as runs/demo")
    return rebuilt_from(path, f"{group}={chosen[-1]}", config[group])


def rebuilt_from(path: Path, choice: str, values: dict[str, Any]) -> Any:
    """Return the object of a choice in a file. Raises `ConfigError` for an unknown one and for impossible values."""
    known = {f"{group}={name}" for group, name in choices().values()}
    if choice not in known and (plugins := made_with(path.parent)):
        raise ConfigError(f"{path}: {choice}: no choice of Headwater's; {plugins}")
    try:
        if any("${" in str(value) for value in values.values()):
            raise ValueError("a value refers to another one")  # nothing of a file is resolved
        return rebuilt(choice, values)
    except (ConfigError, OmegaConfBaseException, ValueError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"{path}: {choice} cannot be rebuilt ({reason}); restore the file") from None

"""What the files of a run say of its model: a saved step, the network, the tokenizer.

Holds how these are checked against each other; the files themselves are in `run_dir` and in `checkpoint`.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from pretrain import models
from pretrain.checkpoint.commit import step_names
from pretrain.checkpoint.load import load_state, saved_step
from pretrain.distributed.world import World
from pretrain.errors import CheckpointError
from pretrain.registry import discover
from pretrain.tokenizer.base import FOR_TARGETS, load_tokenizer
from pretrain.train.run_dir.base import CHECKPOINTS, TOKENIZER_FILE
from pretrain.train.run_dir.record import RECORD_FILE, choice_of, read_record, rebuilt_from


def step_of(run: Path, world: World, number: int | None = None) -> Path:
    """Return the newest verified step of a run, or that of a number. Raises `CheckpointError` without. A collective."""
    return saved_step(run / CHECKPOINTS, world, number, read_record(run).get("steps"))


def tokenizer_of(run: Path) -> Tokenizer:
    """Load the `tokenizer.json` of a run or an export. Raises `DataError` for another one than a run trained with."""
    trained = state_of(run).get("resume", {})
    return load_tokenizer(run / TOKENIZER_FILE, trained.get("tokenizer"))


def target_tokenizer_of(run: Path) -> Tokenizer | None:
    """Load the tokenizer of targets of a run or an export; None where that of sources cuts them, too.

    Raises `DataError` for another one than a run trained with, and for one that is gone.
    """
    trained, file = state_of(run).get("resume", {}).get(FOR_TARGETS), run / FOR_TARGETS
    return load_tokenizer(file, trained) if trained is not None or file.is_file() else None


def network_of(run: Path) -> Any:
    """Return the configuration of a run's network, such as a DecoderConfig, without composing anything.

    Raises `ConfigError` for one that cannot be, and `CheckpointError` if run.json says something else than the newest
    step of what was trained: weights of the same shapes would go through another function.
    """
    discover(models)
    record, state = read_record(run), state_of(run)
    values = dict(record.get("network", {}))
    said = {**{f"model.{key}": value for key, value in values.items()}, **record}
    trained = state.get("resume", {}) | state.get("facts", {})
    for key in said.keys() & trained.keys():
        if said[key] != trained[key]:
            rule = f"its newest step was trained with {trained[key]}; restore the file that is damaged"
            raise CheckpointError(f"{run / RECORD_FILE}: {key} is {said[key]}, {rule}")
    if not values:  # a run older than this entry
        return choice_of(run, "model")
    return rebuilt_from(run / RECORD_FILE, str(values.pop("choice", "")), values)


def state_of(run: Path) -> dict[str, Any]:
    """Return the state of the newest step whose state can be read; nothing of a directory without steps."""
    for name in reversed(step_names(run / CHECKPOINTS)):
        with suppress(CheckpointError):
            return load_state(run / CHECKPOINTS / name)
    return {}

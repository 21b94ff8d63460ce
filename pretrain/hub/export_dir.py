"""Directories that `transformers` loads: their files, put in place all at once, and the options of commands for that.

Holds the directory; which weights and settings it has is for the exports of pretraining and of fine-tuning to say.
"""

from __future__ import annotations

import argparse
import errno
import json
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from pretrain.checkpoint.base import Reader
from pretrain.errors import ConfigError, ResourceError
from pretrain.files import fsync_path, write_hashed
from pretrain.hub import Part
from pretrain.hub.weights import DTYPES, write_weights

RECORD_FILE = "export.json"  # of which step an export is; `transformers` does not read it


@dataclass(frozen=True, kw_only=True)
class Release:
    """What is released of a run."""

    model: Any  # our configuration of the network
    parts: list[Part]  # tensors, by our names in `read` and theirs
    read: Reader
    tokenizer: Tokenizer
    config: dict[str, Any]  # of config.json: the network, its class, what its outputs mean
    special: dict[str, int | None]  # ids of special tokens by the names that `transformers` has for what they do
    generates: bool  # whether the directory is one of a model that writes text
    run: str  # name of the run
    step: int  # of its checkpoint
    tokenizer_settings: dict[str, Any] = field(default_factory=dict)  # of tokenizer_config.json, over those of all


def write_release(release: Release, out: Path, *, dtype: str, shard_mb: int, overwrite: bool) -> Path:
    """Write the directory and return its absolute path. Raises `ConfigError` for a place that is taken."""
    out = out.absolute()
    _check_place(out, release, overwrite)
    with _replacing(out) as directory:
        max_bytes = shard_mb * 1_000_000
        write_weights(directory, release.parts, release.read, dtype=DTYPES[dtype], max_bytes=max_bytes)
        write_hashed(directory / "tokenizer.json", release.tokenizer.to_str(pretty=True).encode())
        ids = {f"{role}_token_id": token for role, token in release.special.items()}
        name = str(DTYPES[dtype]).removeprefix("torch.")
        _write_json(directory / "config.json", {**release.config, **ids, "dtype": name})
        if release.generates:
            _write_json(directory / "generation_config.json", ids)
        tokenizer_config = _tokenizer_config(release.model, release.tokenizer, release.special)
        _write_json(directory / "tokenizer_config.json", tokenizer_config | release.tokenizer_settings)
        _write_json(directory / RECORD_FILE, {"run": release.run, "step": release.step, "dtype": dtype})
    return out


def export_parser(prog: str, description: str, *, default_step: str) -> argparse.ArgumentParser:
    """Return the parser of a command that writes a release, by default of the step that `default_step` describes."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("run", type=Path, help="run directory, e.g. runs/demo")
    parser.add_argument("--step", type=int, default=None, help=f"a saved step (default: {default_step})")
    parser.add_argument("--out", type=Path, default=None, help="directory to write (default: RUN/export)")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="of the weights (default %(default)s)")
    parser.add_argument(
        "--shard-mb", type=_megabytes, default=5000, help="size of a weight file at most (default %(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an export of another run or step")
    return parser


def _megabytes(text: str) -> int:
    size = int(text)
    if size < 1:
        raise argparse.ArgumentTypeError(f"{size}: at least 1 MB")
    return size


def _check_place(out: Path, release: Release, overwrite: bool) -> None:
    """Refuse to replace what is no export, and, unless asked to, an export of another run or step."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        record = json.loads((out / RECORD_FILE).read_bytes())
        found = record["run"], record["step"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(f"--out={out}: exists and is no export; name another directory") from None
    if found != (release.run, release.step) and not overwrite:
        there, new = (f"step {step} of run {run}" for run, step in (found, (release.run, release.step)))
        raise ConfigError(f"--out={out}: holds {there}, not {new}; --overwrite replaces it, or name another")


@contextmanager
def _replacing(directory: Path) -> Iterator[Path]:
    """Give a directory to fill, which takes the place of `directory` when it is complete and on disk."""
    temporary = directory.with_name(f".tmp-{directory.name}-{secrets.token_hex(4)}")
    old = temporary.with_name(f"{temporary.name}-replaced")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        for torn in directory.parent.glob(f".tmp-{directory.name}-*"):
            shutil.rmtree(torn)
        temporary.mkdir()
        yield temporary
        fsync_path(temporary)
        if directory.exists():
            directory.rename(old)
        temporary.rename(directory)
        fsync_path(directory.parent)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise (ResourceError if full else ConfigError)(f"{directory}: cannot be exported ({error})") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _tokenizer_config(model: Any, tokenizer: Tokenizer, special: dict[str, int | None]) -> dict[str, Any]:
    """Return what `transformers` reads beside tokenizer.json."""
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.max_seq_len,
        "clean_up_tokenization_spaces": False,
    }
    if not model.causal:
        segments = ["token_type_ids"] if model.token_types > 1 else []
        about["model_input_names"] = ["input_ids", *segments, "attention_mask"]
    tokens = {role: tokenizer.id_to_token(token) for role, token in special.items() if token is not None}
    return about | {f"{role}_token": token for role, token in tokens.items()}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_hashed(path, json.dumps(content, indent=2).encode() + b"\n")

"""`python -m pretrain.export RUN`: write a run's weights as a directory that `transformers` loads.

Holds the command line and the directory; weight files are `huggingface`'s, names and settings `models/hub`'s, and what
can be exported is `counterpart`'s to say.
"""

from __future__ import annotations

import argparse
import errno
import json
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from pretrain.checkpoint import check_architecture, load_manifest, load_state, saved_step, shapes_of
from pretrain.counterpart import counterpart, frame
from pretrain.data.tokenizer import load_tokenizer
from pretrain.distributed import World
from pretrain.durable import sync
from pretrain.entry import compose_run
from pretrain.errors import ConfigError, HeadwaterError, ResourceError
from pretrain.fragments import FragmentReader, write_durably
from pretrain.huggingface import DTYPES, write_weights
from pretrain.run import build_module
from pretrain.rundir import read_record

RECORD_FILE = "export.json"  # of which step an export is; `transformers` does not read it


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        print(export(options))
    except HeadwaterError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def export(options: argparse.Namespace) -> Path:
    """Export as the command line says and return the directory. Raises `ConfigError` for what has no counterpart."""
    cfg, record = compose_run(options.run), read_record(options.run)
    vocab_size = record["vocab_size"]
    tokenizer = load_tokenizer(options.run / "tokenizer.json")
    family, network, special = counterpart(cfg.model, record, tokenizer)
    step = saved_step(options.run / "checkpoints", World.alone(), options.step)
    reader = FragmentReader(step, load_manifest(step)["tensors"])
    shapes = shapes_of(build_module(cfg, vocab_size))
    check_architecture(step, shapes, reader.weight_shapes())
    beside = list(family.parts_beside(shapes))
    parts = [*family.parts(cfg.model, vocab_size, "model."), *beside]
    if left_out := sorted(shapes.keys() - {part.ours for part in parts}):
        print(f"left out, as {family.architecture} has no place for them: {', '.join(left_out)}", file=sys.stderr)
    origin = {"run": record["name"], "step": load_state(step)["step"], "dtype": options.dtype}
    out = (options.out or options.run / "export").absolute()
    _check_place(out, origin["step"], options.overwrite)
    with _replacing(out) as directory:
        max_bytes = options.shard_mb * 1_000_000
        write_weights(directory, parts, reader, dtype=DTYPES[options.dtype], max_bytes=max_bytes)
        if cfg.model.causal:
            shutil.copyfile(options.run / "tokenizer.json", directory / "tokenizer.json")
        else:
            frame(tokenizer, record["document_frame"], cfg.model.token_types)
            write_durably(directory / "tokenizer.json", tokenizer.to_str(pretty=True).encode())
        classes = {"architectures": [family.pretraining]} if beside else {}
        ids = {f"{role}_token_id": token for role, token in special.items()}
        dtype = str(DTYPES[options.dtype]).removeprefix("torch.")
        _write_json(directory / "config.json", {**network, **classes, **ids, "dtype": dtype})
        if cfg.model.causal:
            _write_json(directory / "generation_config.json", ids)
        _write_json(directory / "tokenizer_config.json", _tokenizer_config(cfg.model, tokenizer, special))
        _write_json(directory / RECORD_FILE, origin)
    return out


def _check_place(out: Path, step: int, overwrite: bool) -> None:
    """Refuse to replace what is no export, and, unless asked to, an export of another step."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        found = json.loads((out / RECORD_FILE).read_bytes())["step"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(f"--out={out}: exists and is no export; name another directory") from None
    if found != step and not overwrite:
        raise ConfigError(f"--out={out}: holds step {found}, not {step}; --overwrite replaces it, or name another")


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
        sync(temporary)
        if directory.exists():
            directory.rename(old)
        temporary.rename(directory)
        sync(directory.parent)
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
    write_durably(path, json.dumps(content, indent=2).encode() + b"\n")


def _parser() -> argparse.ArgumentParser:
    description = "Write the weights of a run as a directory that Hugging Face transformers loads."
    parser = argparse.ArgumentParser(prog="python -m pretrain.export", description=description)
    parser.add_argument("run", type=Path, help="run directory, e.g. runs/demo")
    parser.add_argument("--step", type=int, default=None, help="a saved step (default: the newest that verifies)")
    parser.add_argument("--out", type=Path, default=None, help="directory to write (default: RUN/export)")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="of the weights (default %(default)s)")
    parser.add_argument(
        "--shard-mb", type=_megabytes, default=5000, help="size of a weight file at most (default %(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an export of another step")
    return parser


def _megabytes(text: str) -> int:
    size = int(text)
    if size < 1:
        raise argparse.ArgumentTypeError(f"{size}: at least 1 MB")
    return size


if __name__ == "__main__":
    sys.exit(main())

"""Directories that `transformers` loads: which models have one, and their files.

Holds what exports of pretraining and of fine-tuning share; each chooses its own weights and settings.
"""

from __future__ import annotations

import errno
import json
import logging
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer

from pretrain.checkpoint.base import Reader
from pretrain.errors import ConfigError, ResourceError, check
from pretrain.files import fsync_path, hash_file, read_json, write_hashed
from pretrain.hub.absorbed import absorbed, check_adapters_alone
from pretrain.hub.adapter_config import ADAPTER_CONFIG, BASE
from pretrain.hub.adapter_files import ADAPTER_WEIGHTS
from pretrain.hub.family import Family, HFTensor, family_for
from pretrain.hub.generation_config import ENDS, with_end
from pretrain.hub.model_card import CARD_FILE, LICENCE_FILE, Origin, licence_of, model_card
from pretrain.hub.special_tokens import special_token_ids
from pretrain.hub.task_heads import HeadKind
from pretrain.hub.weights import write_weights
from pretrain.models.base import ModelKind
from pretrain.settings.export_options import DTYPES
from pretrain.tokenizer.base import OF_TARGETS

DECODER_START = "decoder_start_token_id"  # in config.json and generation_config.json
EXPORT_RECORD = "export.json"  # which step of which run an export is of; `transformers` does not read it

log = logging.getLogger(__name__)


class HFModel(NamedTuple):
    """What `transformers` needs to know of a run's model to compute what it computes."""

    family: Family
    config: dict[str, Any]  # what config.json says of the network
    special_tokens: dict[str, int | None]  # ids by their roles in `transformers`
    generation: dict[str, Any]  # what generation_config.json says of its texts, and what ends them


def hf_model(model: Any, record: dict[str, Any], tokenizer: Tokenizer, kind: HeadKind | None = None) -> HFModel:
    """Return what a model is in `transformers`; `record` is the `run.json` of its run, `kind` what its task's head is.

    Raises `ConfigError` for a model that no family supports, naming every setting that is in the way, and for the head
    of a task that `transformers` has no class for.
    """
    family = family_for(model)
    if kind is not None:
        family.head(kind)
    config = family.to_hf(model, record["vocab_size"])
    special_tokens = special_token_ids(tokenizer, record, model.kind)
    generation = record.get("generation") or family.generation(special_tokens)
    generation = with_end(generation, special_tokens["eos"])
    if model.kind is ModelKind.encoder_decoder:
        config[DECODER_START] = record.get("decoder_start")
        config |= {key: own for key, own in generation.items() if key.endswith("_token_id")}
    if (needed := config.get("pad_token_id")) is not None and needed != special_tokens["pad"]:
        rule = f"{family.architecture} counts positions from the id of the padding token, which must be {needed} then"
        found = special_tokens["pad"]
        raise ConfigError(f"model.position_offset={needed + 1}: {rule}; that of tokenizer.json is {found}")
    return HFModel(family, config, special_tokens, generation)


def warn_unless_exportable(
    program: str, model: Any, record: dict[str, Any], tokenizer: Tokenizer, kind: HeadKind | None = None
) -> None:
    """Log, before anything is trained, why the model of a run cannot be exported, if it cannot.

    `program` is the one that trains it, pretrain or finetune.
    """
    try:
        hf_model(model, record, tokenizer, kind)
    except ConfigError as error:
        log.warning("python -m %s.export will refuse this run: %s", program, error)


@dataclass(frozen=True, kw_only=True)
class Export:
    """The contents of an export directory."""

    model: Any  # our configuration of the network
    tensors: list[HFTensor]  # by our names in `read` and theirs
    read: Reader
    tokenizer: Tokenizer
    config: dict[str, Any]  # of config.json: the network, its class, what its outputs mean
    special_tokens: dict[str, int | None]  # ids by their roles in `transformers`
    generation: dict[str, Any] | None  # of generation_config.json, beside special tokens; None: it writes no texts
    run: str  # name of the run
    step: int  # of its checkpoint
    origin: Origin  # what the model card says of it
    tokenizer_settings: dict[str, Any] = field(default_factory=dict)  # of tokenizer_config.json, over the defaults
    beside: dict[str, bytes] = field(default_factory=dict)  # files of a pair of tokenizers by name; see `pair_files`
    adapter: dict[str, Any] | None = None  # of adapter_config.json: its tensors are all there is; None: whole weights


def write_export(export: Export, out: Path, *, dtype: str, shard_mb: int, overwrite: bool) -> Path:
    """Write the directory `out` and return its absolute path; the options are those of `export_parser`.

    Raises `ConfigError` for a directory that must not be replaced, and for files of less than 1 MB.
    """
    out = out.absolute()
    check(dtype in DTYPES, "--dtype", dtype, f"must be one of {', '.join(DTYPES)}")
    check(shard_mb >= 1, "--shard-mb", shard_mb, "at least 1 MB")
    if export.adapter is not None:
        check_adapters_alone(export.model)
    _check_place(out, export, overwrite)
    with _replacing(out) as directory:
        _write_weights(directory, export, dtype=getattr(torch, DTYPES[dtype]), max_bytes=shard_mb * 1_000_000)
        write_hashed(directory / "tokenizer.json", export.tokenizer.to_str(pretty=True).encode())
        ids = {f"{role}_token_id": token for role, token in export.special_tokens.items()}
        if export.generation and ENDS in export.generation:
            ids[ENDS] = export.generation[ENDS]
        config = export.config | ids | {"dtype": DTYPES[dtype]}
        if export.adapter is None:
            _write_json(directory / "config.json", config)
        else:
            _write_json(directory / ADAPTER_CONFIG, export.adapter)
        for name, content in export.beside.items():
            write_hashed(directory / name, content)
        if export.generation is not None and export.adapter is None:
            start = {DECODER_START: config[DECODER_START]} if DECODER_START in config else {}
            _write_json(directory / "generation_config.json", ids | start | export.generation)
        _write_json(directory / "tokenizer_config.json", _tokenizer_config(export) | export.tokenizer_settings)
        card = _write_card(directory, export, config, replaced=out)
        record = {"run": export.run, "step": export.step, "dtype": dtype, "card": card}
        _write_json(directory / EXPORT_RECORD, record)
    return out


def _write_weights(directory: Path, export: Export, *, dtype: torch.dtype, max_bytes: int) -> None:
    """Write the weights, or those of an adapter, which `peft` reads from one file alone."""
    if export.adapter is None:
        read = absorbed(export.read, export.model)
        write_weights(directory, export.tensors, read, dtype=dtype, max_bytes=max_bytes)
        return
    size = dtype.itemsize * sum(tensor.numel for tensor in export.tensors)
    write_weights(directory, export.tensors, export.read, dtype=dtype, max_bytes=size, whole=ADAPTER_WEIGHTS)


def _write_card(directory: Path, export: Export, config: dict[str, Any], replaced: Path) -> str:
    """Write the model card, and the licence of its source, and return the SHA-256 of the card.

    A card in the directory that is being replaced stays if it is not as it was written; the new one lies beside it.
    """
    licence = licence_of(export.origin.started_from)
    if licence.file:
        write_hashed(directory / LICENCE_FILE, licence.file.read_bytes())
    theirs, name = replaced / CARD_FILE, CARD_FILE
    if theirs.is_file() and hash_file(theirs) != read_json(replaced / EXPORT_RECORD).get("card"):
        write_hashed(directory / CARD_FILE, theirs.read_bytes())
        name = "README.new.md"
        log.warning("%s was edited and stays as it is; what it would say now is in %s", theirs, name)
    base = None if export.adapter is None else export.adapter[BASE]
    return write_hashed(directory / name, model_card(export.origin, config, licence, base).encode())


def _check_place(out: Path, export: Export, overwrite: bool) -> None:
    """Refuse to replace anything but an export, and, without `overwrite`, an export of another run or step."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        record = json.loads((out / EXPORT_RECORD).read_bytes())
        found = record["run"], record["step"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(f"--out={out}: exists and is no export; name another directory") from None
    if found != (export.run, export.step) and not overwrite:
        there, new = (f"step {step} of run {run}" for run, step in (found, (export.run, export.step)))
        raise ConfigError(f"--out={out}: holds {there}, not {new}; --overwrite replaces it, or name another")


@contextmanager
def _replacing(directory: Path) -> Iterator[Path]:
    """Yield a temporary directory, which replaces `directory` when it is complete and on disk."""
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


def _tokenizer_config(export: Export) -> dict[str, Any]:
    """Return what `transformers` reads beside tokenizer.json."""
    config = {
        "tokenizer_class": "MarianTokenizer" if OF_TARGETS in export.beside else "PreTrainedTokenizerFast",
        "model_max_length": export.model.max_seq_len,
        "clean_up_tokenization_spaces": False,
    }
    if export.model.kind is ModelKind.encoder_decoder:  # it has no segments, which transformers adds else
        config["model_input_names"] = ["input_ids", "attention_mask"]
    if export.model.kind is ModelKind.bidirectional:
        segments = ["token_type_ids"] if export.model.token_types > 1 else []
        config["model_input_names"] = ["input_ids", *segments, "attention_mask"]
    tokens = {role: token for role, token in export.special_tokens.items() if token is not None}
    return config | {f"{role}_token": export.tokenizer.id_to_token(token) for role, token in tokens.items()}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_hashed(path, json.dumps(content, indent=2).encode() + b"\n")

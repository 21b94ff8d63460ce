"""From sources of text to immutable corpora of token ids: once, under a lock, resumable, in several processes.

Holds the scheduling and the commit; what a worker does with a unit is in `encoding`. Free of torch.

While a corpus is prepared, `<root>/<name>-<key>.partial/` holds `units/` (a record for each finished unit) and
`corpus/` (the shards); whoever writes there holds the lock `<root>/.locks/<name>-<key>`. When every unit is done,
`corpus/` becomes `<root>/<name>-<key>/` by a rename.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

from pretrain.data.documents import OnInvalid
from pretrain.data.encoding import Task, UnitRecord, encode_unit, plan_units, train_tokenizer, unit_id
from pretrain.data.locking import exclusive
from pretrain.data.manifest import FORMAT, PAGE_BYTES, SPLITS, Manifest, Split
from pretrain.data.progress import progress_bar
from pretrain.data.shards import TEMPORARY, verify_shard, write_durably, writing
from pretrain.data.sources import Input, PreparedSource, ReadableSource, SourceConfig, Unit
from pretrain.data.tokenizer import (
    ReadyTokenizer,
    TokenizerConfig,
    TokenizerFacts,
    TrainedTokenizer,
    describe,
    tokenizer_sha256,
)
from pretrain.data.workers import worker_pool
from pretrain.durable import sync
from pretrain.errors import ConfigError, DataError, check
from pretrain.registry import choices_in

POLL_S = 0.2  # seconds between two looks at the workers
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(kw_only=True)
class PrepareConfig:
    """How text becomes a corpus of token ids."""

    root: str = "corpora"  # directory that holds all prepared corpora
    held_out: float = 0.01  # fraction of documents that are kept for validation
    workers: int = 0  # processes; 0 = one for each core that this process may use
    on_invalid: OnInvalid = OnInvalid.replace  # invalid UTF-8, NUL bytes and bad records: replace, skip or fail
    unit_bytes: int = 0  # bytes of input that become one shard; 0 = a 64th of the source, 1 MiB to 128 MiB
    batch_bytes: int = 4 * 2**20  # bytes of ids in one record batch of a shard, held in memory until it is full
    verify: bool = False  # python -m pretrain.prepare reads every shard again and compares hashes

    def __post_init__(self) -> None:
        check(bool(self.root), "data.prepare.root", repr(self.root), "name a directory")
        check(0 <= self.held_out < 1, "data.prepare.held_out", self.held_out, "a fraction from 0 to below 1")
        check(self.workers >= 0, "data.prepare.workers", self.workers, "0 (every core) or more")
        check(self.unit_bytes >= 0, "data.prepare.unit_bytes", self.unit_bytes, "0 (by size) or more")
        check(
            self.batch_bytes >= PAGE_BYTES, "data.prepare.batch_bytes", self.batch_bytes, f"at least {PAGE_BYTES} bytes"
        )


def list_inputs(sources: dict[str, SourceConfig]) -> dict[str, list[Input]]:
    """Return the input files of every source that is still text. Raises `ConfigError` for one that has none."""
    return {name: source.inputs() for name, source in sources.items() if isinstance(source, ReadableSource)}


def prepare(sources: dict[str, SourceConfig], tokenizer: TokenizerConfig, cfg: PrepareConfig) -> dict[str, Path]:
    """Return the corpus directory of each source, in their order; prepare what is not prepared yet.

    Any number of processes may call it at once: one works, the others wait for it. Raises `ConfigError` for a source
    or tokenizer that does not fit, `DataError` for content, `ResourceError` for a full disk or a killed worker.
    """
    readable: dict[str, tuple[ReadableSource, list[Input]]] = {}
    directories: dict[str, Path] = {}
    for name, source in sources.items():
        if _NAME.fullmatch(name) is None:
            raise ConfigError(f"data.sources.{name}: a name has letters, digits, '.', '_' and '-'; choose another")
        if isinstance(source, PreparedSource):
            directories[name] = Path(source.path).expanduser()
        elif isinstance(source, ReadableSource):
            readable[name] = source, source.inputs()
        else:
            raise ConfigError(f"data.sources.{name}: of no kind; choose one, e.g. +source@data.sources.{name}=text")
    if readable:
        identity = _tokenizer_identity(tokenizer, readable, cfg)
        frame = [tokenizer.prefix, tokenizer.suffix]
        for name, (source, inputs) in readable.items():
            key = _key(_source_identity(source, inputs), identity, frame, *_settings(cfg))
            directories[name] = Path(cfg.root).expanduser() / f"{name}-{key}"
        missing = [name for name in readable if not (directories[name] / "manifest.json").exists()]
        if missing:
            path = _tokenizer_file(tokenizer, identity, readable, cfg)
            facts = describe(path, tokenizer)
            _check_one_tokenizer(sources, directories, facts)
            for name in missing:
                _prepare_source(name, *readable[name], directories[name], path, facts, cfg)
    _check_one_tokenizer(sources, directories)
    return {name: directories[name] for name in sources}


def verify(directory: Path) -> Manifest:
    """Read every file of a corpus again. Raises `DataError` naming a file, what it is and what it should be."""
    manifest = Manifest.load(directory)
    path = directory / "tokenizer.json"
    found = tokenizer_sha256(path) if path.exists() else "missing"
    if found != manifest.tokenizer_sha256:
        raise DataError(f"{path}: SHA-256 {found}, expected {manifest.tokenizer_sha256}; prepare the corpus again")
    for split in manifest.splits.values():
        for shard in split.shards:
            verify_shard(directory, shard)
    return manifest


def _tokenizer_identity(
    tokenizer: TokenizerConfig, readable: dict[str, tuple[ReadableSource, list[Input]]], cfg: PrepareConfig
) -> str:
    """Return a key of the tokenizer that needs no training and no loading."""
    if isinstance(tokenizer, ReadyTokenizer):
        return _key(*(hashlib.sha256(data).hexdigest() for data in tokenizer.contents()), *_named_mask(tokenizer))
    settings = plain_values(tokenizer).items()
    trained = {name: value for name, value in settings if name not in ("prefix", "suffix", "mask")}
    choice, texts = type(tokenizer).__name__, sorted(_source_identity(*source) for source in readable.values())
    return _key(choice, trained, texts, *_settings(cfg), *_named_mask(tokenizer))


def _named_mask(tokenizer: TokenizerConfig) -> list[str]:
    """Return what `tokenizer.mask` adds to keys: nothing if it names no token, as in corpora older than the setting."""
    return [] if tokenizer.mask is None else [tokenizer.mask]


def _source_identity(source: ReadableSource, inputs: list[Input]) -> str:
    return _key(_source_values(source), inputs)


def _source_values(source: ReadableSource) -> dict[str, Any]:
    """Return what a source is, without its weight: that is the mixture's."""
    [(_, _, choice)] = choices_in(source)
    return {"choice": choice} | {name: value for name, value in plain_values(source).items() if name != "weight"}


def _settings(cfg: PrepareConfig) -> list[Any]:
    """Return the settings that change the bytes of a corpus."""
    return [FORMAT, cfg.held_out, cfg.on_invalid.name, cfg.unit_bytes, cfg.batch_bytes]


def plain_values(config: Any) -> dict[str, Any]:
    """Return a configuration dataclass as plain JSON values."""
    return json.loads(json.dumps(asdict(config), default=lambda value: value.name))


def _key(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _tokenizer_file(
    tokenizer: TokenizerConfig,
    identity: str,
    readable: dict[str, tuple[ReadableSource, list[Input]]],
    cfg: PrepareConfig,
) -> Path:
    """Return the `tokenizer.json`, trained or copied if this is its first use."""
    path = Path(cfg.root).expanduser() / f"tokenizer-{identity}.json"
    with _work_directory(path, "make the tokenizer") as work:
        if path.exists():
            return path
        if isinstance(tokenizer, ReadyTokenizer):
            serialized = tokenizer.to_json()
        else:
            assert isinstance(tokenizer, TrainedTokenizer)
            with worker_pool(1) as (pool, text_chars), progress_bar("training the tokenizer", 1) as bar:
                future = pool.submit(
                    train_tokenizer,
                    tokenizer,
                    readable,
                    unit_bytes=cfg.unit_bytes,
                    held_out=cfg.held_out,
                    on_invalid=cfg.on_invalid,
                    threads=_num_workers(cfg),
                )
                while not wait([future], POLL_S).done:
                    bar.update(0, text_chars.value)
                serialized = future.result()
                bar.update(1, text_chars.value)
        finished = work / "tokenizer.json"
        write_durably(finished, serialized.encode())
        finished.rename(path)
    return path


def _prepare_source(
    name: str,
    source: ReadableSource,
    inputs: list[Input],
    directory: Path,
    tokenizer_path: Path,
    facts: TokenizerFacts,
    cfg: PrepareConfig,
) -> None:
    """Prepare one corpus, or wait for the process that does."""
    with _work_directory(directory, f"prepare {name}") as work:
        if directory.exists():
            return
        corpus, records = work / "corpus", work / "units"
        for folder in (corpus, records):
            folder.mkdir(exist_ok=True)
            for stale in folder.glob(f"{TEMPORARY}*"):
                stale.unlink()
        task = Task(source, corpus, tokenizer_path, facts, cfg.held_out, cfg.on_invalid, cfg.batch_bytes)
        with worker_pool(_num_workers(cfg)) as (pool, text_chars):
            units = pool.submit(plan_units, source, inputs, cfg.unit_bytes).result()
            done = _encode_units(name, task, units, records, pool, text_chars)
        if source.inputs() != inputs:
            raise DataError(f"data.sources.{name}: its files changed while they were prepared; run again")
        manifest = Manifest(
            source=_source_values(source),
            dtype=facts.dtype,
            vocab_size=facts.vocab_size,
            tokenizer_sha256=facts.sha256,
            prefix=facts.prefix,
            suffix=facts.suffix,
            mask=facts.mask,
            splits={
                split: Split(shards=[shard for record in done if (shard := record.shards[split])]) for split in SPLITS
            },
            skipped=UnitRecord.sum_skipped(done),
            versions={"python": platform.python_version()}
            | {library: version(library) for library in ("headwater", "tokenizers", "pyarrow", "numpy")},
        )
        _check_splits(name, manifest, cfg)
        write_durably(corpus / "tokenizer.json", tokenizer_path.read_bytes())
        with writing(corpus):
            manifest.save(corpus)
        sync(corpus / "manifest.json")
        sync(corpus)
        corpus.rename(directory)
        sync(directory.parent)


def _encode_units(
    name: str,
    task: Task,
    units: list[Unit],
    records: Path,
    pool: ProcessPoolExecutor,
    text_chars: Synchronized[int],
) -> list[UnitRecord]:
    """Run every unit that has no record yet, in any order; return the records in the order of units."""
    paths = [records / f"{number:05d}.json" for number in range(len(units))]

    def record(number: int) -> UnitRecord | None:
        found = UnitRecord.load(paths[number])
        return found if found and found.unit == unit_id(units[number]) else None

    pending = [number for number in range(len(units)) if record(number) is None]
    futures = {pool.submit(encode_unit, task, number, units[number], paths[number]) for number in pending}
    with progress_bar(f"preparing {name}", len(units), len(units) - len(futures)) as bar:
        while futures:
            finished, futures = wait(futures, POLL_S, FIRST_COMPLETED)
            for future in finished:
                future.result()
            bar.update(len(units) - len(futures), text_chars.value)
    done = [record(number) for number in range(len(units))]
    return [found for found in done if found is not None]


def _check_splits(name: str, manifest: Manifest, cfg: PrepareConfig) -> None:
    documents = {split: manifest.splits[split].documents for split in SPLITS}
    total = sum(documents.values())
    if total == 0:
        raise DataError(f"data.sources.{name}: no text in it (left out: {manifest.skipped}); check its files and field")
    for split, needed in (("train", True), ("validation", cfg.held_out > 0)):
        if needed and not documents[split]:
            raise DataError(
                f"data.prepare.held_out={cfg.held_out}: none of the {total} documents of {name} is in the {split} "
                "split; choose another fraction (0 for no validation), cut the text into shorter documents "
                "(data.sources.*.documents), or add text"
            )


def _check_one_tokenizer(
    sources: dict[str, SourceConfig], directories: dict[str, Path], facts: TokenizerFacts | None = None
) -> None:
    """Raise `ConfigError` if corpora that are to be mixed do not have the same ids, frame and mask.

    Only a corpus that was prepared elsewhere can differ; the tokenizer stands for those that this call prepares.
    """
    frames: dict[str, str] = {}  # what must be one -> the first to have it
    if facts is not None:
        frames[_frame_of(facts)] = "the configured tokenizer"
    for name, directory in directories.items():
        if facts is None or isinstance(sources[name], PreparedSource):
            frames.setdefault(_frame_of(Manifest.load(directory)), f"data.sources.{name} ({directory})")
    if len(frames) > 1:
        listed = "; ".join(f"{owner}: {frame}" for frame, owner in frames.items())
        raise ConfigError(
            f"data.sources: corpora of different tokenizers cannot be mixed: {listed}; prepare all with one, "
            "for example tokenizer=file tokenizer.path=CORPUS/tokenizer.json"
        )


def _frame_of(owner: Manifest | TokenizerFacts) -> str:
    sha256 = owner.tokenizer_sha256 if isinstance(owner, Manifest) else owner.sha256
    named = "" if owner.mask is None else f", id that hides others {owner.mask}"
    return f"tokenizer SHA-256 {sha256:.16}, ids before a document {owner.prefix}, after it {owner.suffix}{named}"


def _num_workers(cfg: PrepareConfig) -> int:
    return cfg.workers or len(os.sched_getaffinity(0))


@contextmanager
def _work_directory(target: Path, purpose: str) -> Iterator[Path]:
    """Hold the lock of `target` and open `<target>.partial`, which goes when the block has made `target`."""
    lock = target.parent / ".locks" / target.name  # never removed: who waits must wait for the same file
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()
    except OSError as error:
        raise ConfigError(f"data.prepare.root: cannot write {target.parent} ({error}); choose another") from None
    with exclusive(lock, purpose):
        work = target.with_name(f"{target.name}.partial")
        work.mkdir(exist_ok=True)
        yield work
        shutil.rmtree(work)

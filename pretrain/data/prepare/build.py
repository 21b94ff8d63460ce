"""From sources of text to immutable corpora of token ids: once, under a lock, resumable, in several processes.

Holds the scheduling and the commit; what a worker does with a unit is in `encoding`, names are in `naming`. Free of
torch.

While a corpus is prepared, `<root>/<name>-<key>.partial/` holds `units/` (a record for each finished unit) and
`corpus/` (the shards). Who prepares the whole holds the lock `<root>/.locks/<name>-<key>` alone; parts share it, and
each holds a lock of its own, too. When every unit is done, `corpus/` becomes `<root>/<name>-<key>/` by a rename.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from pretrain.data.manifest import SPLITS, Manifest, Split
from pretrain.data.prepare.cache_key import Text, corpus_directories, source_values, texts_of, tokenizer_identity
from pretrain.data.prepare.config import PrepareConfig
from pretrain.data.prepare.encode import Task, UnitRecord, encode_unit, plan_units, train_tokenizer, unit_id
from pretrain.data.prepare.locking import exclusive, shared
from pretrain.data.prepare.progress import progress_bar
from pretrain.data.prepare.shards import TEMPORARY, verify_shard, write_whole, writing
from pretrain.data.prepare.workers import worker_pool
from pretrain.data.sources.base import PreparedSource, SourceConfig
from pretrain.errors import ConfigError, DataError
from pretrain.files import fsync_path
from pretrain.tokenizer.base import (
    ReadyTokenizer,
    TokenizerConfig,
    TokenizerFacts,
    TrainedTokenizer,
    describe,
    tokenizer_sha256,
)

POLL_S = 0.2  # seconds between two looks at the workers


class Share(NamedTuple):
    """What is prepared of a corpus when a part of its units is."""

    numbers: range  # of the units of the part
    finished: int  # units that are done, in all parts
    units: int  # of the corpus


class _Job(NamedTuple):
    """A corpus that is not prepared yet."""

    name: str  # of its source
    text: Text
    directory: Path  # where it will be
    tokenizer: Path  # tokenizer.json
    facts: TokenizerFacts


def prepare(sources: dict[str, SourceConfig], tokenizer: TokenizerConfig, cfg: PrepareConfig) -> dict[str, Path]:
    """Return the corpus directory of each source, in their order; prepare what is not prepared yet.

    Any number of processes may call it at once: one works, the others wait for it. Raises `ConfigError` for a source
    or tokenizer that does not fit, `DataError` for content, `ResourceError` for a full disk or a killed worker.
    """
    cfg.check_whole()
    texts = texts_of(sources)
    directories = corpus_directories(sources, texts, tokenizer, cfg)
    for job in _jobs(sources, texts, directories, tokenizer, cfg):
        _prepare_corpus(job, cfg)
    _check_one_tokenizer(sources, directories)
    return directories


def prepare_share(
    sources: dict[str, SourceConfig], tokenizer: TokenizerConfig, cfg: PrepareConfig
) -> dict[str, Share | None]:
    """Prepare the units of `cfg.part` of each source and say which those are; None for a corpus that is whole.

    Any number of parts may work at once, on any nodes that share the directory; `prepare` with the same settings
    commits what they leave, and does what they left out. Raises what `prepare` raises.
    """
    texts = texts_of(sources)
    directories = corpus_directories(sources, texts, tokenizer, cfg)
    shares: dict[str, Share | None] = dict.fromkeys(sources)
    for job in _jobs(sources, texts, directories, tokenizer, cfg):
        shares[job.name] = _prepare_units(job, cfg)
    return shares


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


def _jobs(
    sources: dict[str, SourceConfig],
    texts: dict[str, Text],
    directories: dict[str, Path],
    tokenizer: TokenizerConfig,
    cfg: PrepareConfig,
) -> list[_Job]:
    """List the corpora that are not prepared yet; the tokenizer is there when this returns."""
    missing = [name for name in texts if not (directories[name] / "manifest.json").exists()]
    if not missing:
        return []
    path = _tokenizer_file(tokenizer, texts, cfg)
    facts = describe(path, tokenizer)
    _check_one_tokenizer(sources, directories, facts)
    return [_Job(name, texts[name], directories[name], path, facts) for name in missing]


def _tokenizer_file(tokenizer: TokenizerConfig, texts: dict[str, Text], cfg: PrepareConfig) -> Path:
    """Return the `tokenizer.json`, trained or copied if this is its first use."""
    path = Path(cfg.root).expanduser() / f"tokenizer-{tokenizer_identity(tokenizer, texts, cfg)}.json"
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
                    {name: (text.source, text.inputs) for name, text in texts.items()},
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
        write_whole(finished, serialized.encode())
        finished.rename(path)
    return path


def _prepare_corpus(job: _Job, cfg: PrepareConfig) -> None:
    """Prepare one corpus, or wait for the process that does."""
    with _work_directory(job.directory, f"prepare {job.name}") as work:
        if job.directory.exists():
            return
        for stale in work.glob(f"*/{TEMPORARY}*"):  # nobody else writes there now
            stale.unlink()
        done = [record for record in _encode_units(job, work, cfg) if record is not None]
        manifest = Manifest(
            source=source_values(job.text.source),
            dtype=job.facts.dtype,
            vocab_size=job.facts.vocab_size,
            tokenizer_sha256=job.facts.sha256,
            prefix=job.facts.prefix,
            suffix=job.facts.suffix,
            mask=job.facts.mask,
            splits={
                split: Split(shards=[shard for record in done if (shard := record.shards[split])]) for split in SPLITS
            },
            skipped=UnitRecord.sum_skipped(done),
            versions={"python": platform.python_version()}
            | {library: version(library) for library in ("headwater", "tokenizers", "pyarrow", "numpy")},
        )
        _check_splits(job.name, manifest, cfg)
        corpus = work / "corpus"
        write_whole(corpus / "tokenizer.json", job.tokenizer.read_bytes())
        with writing(corpus):
            manifest.save(corpus)
        fsync_path(corpus / "manifest.json")
        fsync_path(corpus)
        corpus.rename(job.directory)
        fsync_path(job.directory.parent)


def _prepare_units(job: _Job, cfg: PrepareConfig) -> Share | None:
    """Prepare the units of one part, or wait for the process that does. Returns None if the corpus is whole by then."""
    lock = _lock_of(job.directory)
    own = lock.with_name(f"{lock.name}-part-{cfg.part}-of-{cfg.parts}")
    purpose = f"prepare part {cfg.part} of {cfg.parts} of {job.name}"
    with exclusive(own, purpose), shared(lock, purpose):
        if job.directory.exists():
            return None
        work = _work_of(job.directory)
        work.mkdir(exist_ok=True)
        records = _encode_units(job, work, cfg)
        finished = sum(record is not None for record in records)
        return Share(range(cfg.part, len(records), cfg.parts), finished, len(records))


def _encode_units(job: _Job, work: Path, cfg: PrepareConfig) -> list[UnitRecord | None]:
    """Run those units of a part that have no record yet; return the records of all units in their order.

    None stands for a unit that another part has not done yet.
    """
    corpus, records = work / "corpus", work / "units"
    for folder in (corpus, records):
        folder.mkdir(exist_ok=True)
    source, inputs = job.text
    task = Task(source, corpus, job.tokenizer, job.facts, cfg.held_out, cfg.on_invalid, cfg.batch_bytes)
    with worker_pool(_num_workers(cfg)) as (pool, text_chars):
        units = pool.submit(plan_units, source, inputs, cfg.unit_bytes).result()
        paths = [records / f"{number:05d}.json" for number in range(len(units))]

        def record(number: int) -> UnitRecord | None:
            found = UnitRecord.load(paths[number])
            return found if found and found.unit == unit_id(units[number]) else None

        numbers = range(cfg.part, len(units), cfg.parts)
        pending = [number for number in numbers if record(number) is None]
        futures = {pool.submit(encode_unit, task, number, units[number], paths[number]) for number in pending}
        with progress_bar(f"preparing {job.name}", len(numbers), len(numbers) - len(futures)) as bar:
            while futures:
                finished, futures = wait(futures, POLL_S, FIRST_COMPLETED)
                for future in finished:
                    future.result()
                bar.update(len(numbers) - len(futures), text_chars.value)
    if source.inputs() != inputs:
        raise DataError(f"data.sources.{job.name}: its files changed while they were prepared; run again")
    return [record(number) for number in range(len(units))]


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
    """Hold the lock of `target` and open its `.partial`, which goes when the block has made `target`."""
    with exclusive(_lock_of(target), purpose):
        work = _work_of(target)
        work.mkdir(exist_ok=True)
        yield work
        shutil.rmtree(work)


def _lock_of(target: Path) -> Path:
    """Return the lock file of `target`. It is never removed: who waits must wait for the same file."""
    lock = target.parent / ".locks" / target.name
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()
    except OSError as error:
        raise ConfigError(f"data.prepare.root: cannot write {target.parent} ({error}); choose another") from None
    return lock


def _work_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.partial")

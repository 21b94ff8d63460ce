"""From sources of text to immutable corpora of token ids: once, under a lock, resumable, in several processes.

Holds the scheduling and the commit; what a worker does with a unit is in `encode`, names are in `cache_key`. Free of
torch.

While a corpus is prepared, `<root>/<name>-<key>.partial/` holds `units/` (a record for each finished unit) and
`corpus/` (the shards). A process that prepares the whole corpus holds the lock `<root>/.locks/<name>-<key>` alone;
parts share it, and each also holds a lock of its own. When every unit is done, `corpus/` becomes `<root>/<name>-<key>/`
by a rename.
"""

from __future__ import annotations

import errno
import os
import platform
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from pretrain.data.corpus import Corpus
from pretrain.data.manifest import SPLITS, Manifest, Split
from pretrain.data.prepare.cache_key import (
    SourceInputs,
    corpus_directories,
    fitting,
    source_values,
    texts_of,
    tokenizer_identity,
)
from pretrain.data.prepare.config import PrepareConfig
from pretrain.data.prepare.encode import Encoding, UnitRecord, encode_unit, train_tokenizer, unit_id
from pretrain.data.prepare.held_out import HeldOut
from pretrain.data.prepare.locking import lock
from pretrain.data.prepare.shards import TEMPORARY
from pretrain.data.prepare.survey import Least, no_text, plan_units, survey
from pretrain.data.prepare.workers import Workers, worker_pool
from pretrain.data.sources.base import PreparedSource, SourceConfig, Unit
from pretrain.errors import ConfigError, DataError, ResourceError
from pretrain.files import fsync_path, hash_file, read_json, replace_file, sealed
from pretrain.settings.options import version_of
from pretrain.tokenizer.base import (
    ReadyTokenizer,
    TokenizerConfig,
    TokenizerFacts,
    TrainedTokenizer,
    describe,
    tokenizer_sha256,
)

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Share(NamedTuple):
    """What is prepared of a corpus when a part of its units is."""

    numbers: range  # of the units of the part
    finished: int  # units that are done, in all parts
    units: int  # of the corpus


class _Job(NamedTuple):
    """A corpus that is not prepared yet."""

    name: str  # of its source
    text: SourceInputs
    directory: Path  # where it will be
    tokenizer: Path  # tokenizer.json
    facts: TokenizerFacts
    least: Least


def prepare(
    sources: dict[str, SourceConfig], tokenizer: TokenizerConfig, cfg: PrepareConfig, *, seq_len: int = 1
) -> dict[str, Path]:
    """Return the corpus directory of each source, in their order; prepare what is not prepared yet.

    Any number of processes may call it at once: one works, the others wait for it. Raises `ConfigError` for a source
    or tokenizer that does not fit, `DataError` for content, also for text that is less than a slot of `seq_len` tokens,
    `ResourceError` for a full disk or a killed worker.
    """
    cfg.check_whole()
    directories, jobs = _plan(sources, tokenizer, cfg, seq_len)
    for job in jobs:
        _prepare_corpus(job, cfg)
    _check_one_tokenizer(sources, directories)
    return directories


def prepare_share(
    sources: dict[str, SourceConfig], tokenizer: TokenizerConfig, cfg: PrepareConfig, *, seq_len: int = 1
) -> dict[str, Share | None]:
    """Prepare the units of `cfg.part` of each source and say which those are; None for a corpus that is whole.

    Any number of parts may work at once, on any nodes that share the directory; `prepare` with the same settings
    commits their work and does the units that are missing. Raises what `prepare` raises.
    """
    _, jobs = _plan(sources, tokenizer, cfg, seq_len)
    return dict.fromkeys(sources) | {job.name: _prepare_units(job, cfg) for job in jobs}


def verify(directory: Path) -> Manifest:
    """Read every file of a corpus again. Raises `DataError` naming a file, what it is and what it should be."""
    manifest = Manifest.load(directory)
    corpora = [Corpus.open(directory, split) for split in manifest.splits]  # sizes and counts
    hashes = [(directory / "tokenizer.json", tokenizer_sha256, manifest.tokenizer_sha256)]
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    for path, hash_of, expected in hashes + [(directory / shard.file, hash_file, shard.sha256) for shard in shards]:
        found = hash_of(path) if path.exists() else "missing"
        if found != expected:
            raise DataError(f"{path}: SHA-256 {found}, expected {expected}; prepare the corpus again")
    for corpus in corpora:
        corpus.verify()
    return manifest


def _plan(
    sources: dict[str, SourceConfig], tokenizer: TokenizerConfig, cfg: PrepareConfig, seq_len: int
) -> tuple[dict[str, Path], list[_Job]]:
    """Return the directory of every corpus and what is still to be prepared; the tokenizer is there by then."""
    texts = texts_of(sources)
    directories = corpus_directories(sources, texts, tokenizer, cfg)
    missing = [name for name in texts if not (directories[name] / "manifest.json").exists()]
    if not missing:
        return directories, []
    least = Least(train=seq_len, validation=seq_len if len(sources) == 1 else 1)  # what is held out is put together
    if len(missing) > 1:  # none is prepared if another one will be refused
        with worker_pool(1) as workers:
            for name in missing:
                if not _note(_partial(directories[name])).exists():
                    workers.call(survey, name, texts[name], cfg, least)
    path = _tokenizer_file(tokenizer, texts, cfg, least)
    facts = describe(path, tokenizer)
    _check_one_tokenizer(sources, directories, facts)
    return directories, [_Job(name, texts[name], directories[name], path, facts, least) for name in missing]


def _tokenizer_file(
    tokenizer: TokenizerConfig, texts: dict[str, SourceInputs], cfg: PrepareConfig, least: Least
) -> Path:
    """Return the `tokenizer.json`, trained or copied if this is its first use."""
    path = cfg.directory / f"tokenizer-{tokenizer_identity(tokenizer, texts, cfg)}.json"
    with _work_directory(path, "make the tokenizer") as work:
        if path.exists():
            return path
        if isinstance(tokenizer, ReadyTokenizer):
            serialized = tokenizer.to_json()
        else:
            assert isinstance(tokenizer, TrainedTokenizer)
            with worker_pool(1) as workers:
                call = train_tokenizer, fitting(tokenizer, texts), texts, cfg, least, _num_workers(cfg)
                [serialized] = workers.run("training the tokenizer", [call])
        finished = work / "tokenizer.json"
        replace_file(finished, [serialized.encode()], prefix=TEMPORARY)
        finished.rename(path)
    return path


def _prepare_corpus(job: _Job, cfg: PrepareConfig) -> None:
    """Prepare one corpus, or wait for the process that does."""
    with _work_directory(job.directory, f"prepare {job.name}") as work:
        if job.directory.exists():
            return
        for stale in work.glob(f"*/{TEMPORARY}*"):  # nobody else writes there now
            stale.unlink()
        left_out = Counter(job.text.source.left_out())
        done = [record for record in _encode_units(job, work, cfg) if record is not None]
        manifest = Manifest(
            source=source_values(job.text.source),
            **asdict(job.facts),
            splits={
                split: Split(shards=[shard for record in done if (shard := record.shards[split])]) for split in SPLITS
            },
            skipped=dict(sorted(sum((Counter(record.skipped) for record in done), left_out).items())),
            versions={"python": platform.python_version()}
            | {library: version_of(library) for library in ("headwater", "tokenizers", "pyarrow", "numpy")},
        )
        _check_splits(job.name, manifest, cfg)
        corpus = work / "corpus"
        replace_file(corpus / "tokenizer.json", [job.tokenizer.read_bytes()], prefix=TEMPORARY)
        manifest.save(corpus)
        fsync_path(corpus / "manifest.json")
        fsync_path(corpus)
        corpus.rename(job.directory)
        fsync_path(job.directory.parent)


def _prepare_units(job: _Job, cfg: PrepareConfig) -> Share | None:
    """Prepare the units of one part, or wait for the process that does. Returns None if the corpus is whole by then."""
    whole = _lock_file(job.directory)
    own = whole.with_name(f"{whole.name}-part-{cfg.part}-of-{cfg.parts}")
    purpose = f"prepare part {cfg.part} of {cfg.parts} of {job.name}"
    with lock(own, purpose), lock(whole, purpose, shared=True):
        if job.directory.exists():
            return None
        with writing_to(_partial(job.directory)) as work:
            records = _encode_units(job, work, cfg)
        finished = sum(record is not None for record in records)
        return Share(range(cfg.part, len(records), cfg.parts), finished, len(records))


def _encode_units(job: _Job, work: Path, cfg: PrepareConfig) -> list[UnitRecord | None]:
    """Encode those units of a part that have no record yet; return the records of all units in their order.

    None stands for a unit that another part has not done yet.
    """
    corpus, records = work / "corpus", work / "units"
    for folder in (corpus, records):
        folder.mkdir(exist_ok=True)
    source, inputs = job.text
    with worker_pool(_num_workers(cfg)) as workers:
        units, held_out = _looked_at(job, work, cfg, workers)
        encoding = Encoding(source, corpus, job.tokenizer, job.facts, cfg, held_out)
        paths = [records / f"{number:05d}.json" for number in range(len(units))]

        def record(number: int) -> UnitRecord | None:
            found = UnitRecord.load(paths[number])
            return found if found and found.unit == unit_id(units[number], held_out) else None

        numbers = range(cfg.part, len(units), cfg.parts)
        calls = [
            (encode_unit, encoding, number, units[number], paths[number]) for number in numbers if not record(number)
        ]
        workers.run(f"preparing {job.name}", calls, finished=len(numbers) - len(calls))
    if source.inputs() != inputs:
        raise DataError(f"data.sources.{job.name}: its files changed while they were prepared; run again")
    return [record(number) for number in range(len(units))]


def _looked_at(job: _Job, work: Path, cfg: PrepareConfig, workers: Workers) -> tuple[list[Unit], HeldOut]:
    """Return the units of a source and how it is held out, which is noted in `work` and read again by later calls."""
    try:
        noted = read_json(_note(work), HeldOut)
    except (OSError, ValueError):
        look = workers.call(survey, job.name, job.text, cfg, job.least)
        print(look.described(job.name, job.text), file=sys.stderr, flush=True)
        replace_file(_note(work), [sealed(asdict(look.held_out))], prefix=TEMPORARY)
        return look.units, look.held_out
    return workers.call(plan_units, job.text.source, job.text.inputs, cfg.unit_bytes), noted


def _note(work: Path) -> Path:
    return work / "held_out.json"


def _check_splits(name: str, manifest: Manifest, cfg: PrepareConfig) -> None:
    documents = {split: manifest.splits[split].documents for split in SPLITS}
    total = sum(documents.values())
    if total == 0:
        raise no_text(f"data.sources.{name}", manifest.skipped, cfg)
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
    """Raise `ConfigError` if corpora that are to be mixed do not have the same ids, document template and mask.

    Only a corpus that was prepared elsewhere can differ; `facts` stands for those that this call prepares.
    """
    owners: dict[str, str] = {}  # what must be the same for all -> the first that has it
    if facts is not None:
        owners[_identity(facts)] = "the configured tokenizer"
    for name, directory in directories.items():
        if facts is None or isinstance(sources[name], PreparedSource):
            owners.setdefault(_identity(Manifest.load(directory)), f"data.sources.{name} ({directory})")
    if len(owners) > 1:
        listed = "; ".join(f"{owner}: {identity}" for identity, owner in owners.items())
        raise ConfigError(
            f"data.sources: corpora of different tokenizers cannot be mixed: {listed}; prepare all with one, "
            "for example tokenizer=file tokenizer.path=CORPUS/tokenizer.json"
        )


def _identity(of: Manifest | TokenizerFacts) -> str:
    mask = "" if of.mask is None else f", id that hides others {of.mask}"
    return f"tokenizer SHA-256 {of.tokenizer_sha256:.16}, ids before a document {of.prefix}, after it {of.suffix}{mask}"


def _num_workers(cfg: PrepareConfig) -> int:
    return cfg.workers or len(os.sched_getaffinity(0))


@contextmanager
def _work_directory(target: Path, purpose: str) -> Iterator[Path]:
    """Hold the lock of `target` and open its `.partial`, which goes when the block has made `target`."""
    with lock(_lock_file(target), purpose), writing_to(_partial(target)) as work:
        yield work
        shutil.rmtree(work)


def _lock_file(target: Path) -> Path:
    """Return the lock file of `target`. It is never removed: all processes must wait for the same file."""
    path = target.parent / ".locks" / target.name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise ConfigError(f"data.prepare.root: cannot write {target.parent} ({error}); choose another") from None
    return path


def _partial(target: Path) -> Path:
    return target.with_name(f"{target.name}.partial")


@contextmanager
def writing_to(work: Path) -> Iterator[Path]:
    """Make a directory that the block fills, in this process or in workers. A full disk becomes a `ResourceError`."""
    try:
        work.mkdir(exist_ok=True)
        yield work
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise ResourceError(
            f"{work}: {error.strerror}; free some space, or choose another data.prepare.root, and run again: "
            "what is prepared is kept"
        ) from None

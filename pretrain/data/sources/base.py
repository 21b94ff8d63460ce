"""Sources of text: what a corpus is made from, and how it is cut into units that can be prepared one by one.

Holds the base class and the sources of plain text; records with a text field are in `structured`, cutting bytes into
documents is in `documents`. Free of torch.

A unit is a part of the input that one process turns into one shard per split. Units follow from the input alone, never
from the number of processes, so a corpus has the same bytes however it was prepared.
"""

from __future__ import annotations

import os
import sysconfig
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

from pretrain.data.sources.bad_records import BadRecords, OnInvalid
from pretrain.data.sources.content import ForeignFile, unlike_lines
from pretrain.data.sources.documents import PART_BYTES, Raw, decode, lines, paragraphs, parts, whole
from pretrain.data.sources.locations import Input, file_input, find_files, has_parts, typed_name
from pretrain.data.sources.readers import is_compressed, open_bytes
from pretrain.data.sources.remote import is_remote
from pretrain.errors import ConfigError, DataError, check
from pretrain.registry import register

STDLIB_LEFT_OUT = {"test", "tests", "idlelib", "turtledemo", "lib2to3", "ensurepip", "site-packages", "__pycache__"}


class FileRange(NamedTuple):
    """A part of one input: bytes of a plain file, row groups of a Parquet file, shards of a hub data set."""

    file: str
    start: int
    stop: int | None  # None = to the end


Unit = list[FileRange]


@dataclass(kw_only=True)
class SourceConfig:
    """Base of every source."""

    weight: float = 1.0  # share of the training tokens drawn from this source, relative to the other sources

    def __post_init__(self) -> None:
        check(self.weight > 0, "data.sources.*.weight", self.weight, "must be above 0; leave the source out instead")


@register("source", "prepared")
@dataclass(kw_only=True)
class PreparedSource(SourceConfig):
    """A corpus that was prepared before."""

    path: str = ""  # corpus directory, the one that holds manifest.json

    def __post_init__(self) -> None:
        super().__post_init__()
        check(bool(self.path), "data.sources.*.path", repr(self.path), "name the directory of a prepared corpus")


@dataclass(kw_only=True)
class ReadableSource(SourceConfig, ABC):
    """A source whose text is still to be prepared."""

    document: ClassVar[str] = "record"  # what of its input is one

    @property
    def in_parts(self) -> bool:
        """Whether its documents are parts of longer texts."""
        return False

    def settled(self, inputs: list[Input]) -> Self:
        """Return the source with what its settings leave open, as its files decide."""
        return self

    @abstractmethod
    def inputs(self) -> list[Input]:
        """List the input files in their order. Raises `ConfigError` if there are none."""

    def holds(self, directory: Path) -> bool:
        """Return whether a folder that it reads has this directory below it."""
        return False

    def left_out(self) -> dict[str, int]:
        """Count the files that `inputs` leaves out, by reason, and name some of them in the log."""
        return {}

    @abstractmethod
    def ranges(self, inputs: list[Input], unit_bytes: int) -> Iterator[tuple[FileRange, int]]:
        """Yield the parts of the input in order, each with its size in bytes, none much above `unit_bytes`."""

    @abstractmethod
    def read(self, part: FileRange, bad: BadRecords) -> Iterator[Raw]:
        """Yield the documents of one part."""

    def units(self, inputs: list[Input], unit_bytes: int) -> list[Unit]:
        """Join consecutive ranges into units of at most about `unit_bytes`."""
        units: list[Unit] = []
        room = 0
        for part, size in self.ranges(inputs, unit_bytes):
            if not units or size > room:
                units.append([])
                room = unit_bytes
            units[-1].append(part)
            room -= size
        return units

    def texts(self, unit: Unit, bad: BadRecords) -> Iterator[str]:
        """Yield the text of every document of a unit that the policy keeps."""
        for part in unit:
            if part.stop == 0:
                bad.counts["empty_file"] += 1
                continue
            try:
                for raw in self.read(part, bad):
                    if (text := decode(raw, bad)) is not None:
                        yield text
            except ForeignFile as error:
                if bad.policy is not OnInvalid.skip:
                    fix = "or leave such files out with data.prepare.on_invalid=skip"
                    raise DataError(f"{error}; {fix}") from None
                if part.start == 0:
                    bad.counts["foreign_file"] += 1


class Cut(Enum):
    """What one document is."""

    auto = "auto"  # a whole file, or parts of about 4 MiB, if a file is longer
    file = "file"  # a whole file
    line = "line"  # a line
    blank_line = "blank_line"  # lines up to a blank one


@dataclass(kw_only=True)
class FileSource(ReadableSource, ABC):
    """A source that reads files named by paths and patterns."""

    paths: Any = field(default_factory=list)  # files, folders, URLs, patterns such as books/**/*.txt; one or a list

    def __post_init__(self) -> None:
        super().__post_init__()
        self.paths = self.paths if isinstance(self.paths, list) else [self.paths]
        named = bool(self.paths) and all(isinstance(path, str) and path for path in self.paths)
        check(named, "data.sources.*.paths", self.paths, "name at least one file, folder or pattern")

    def inputs(self) -> list[Input]:
        """List the files that the patterns name, sorted, each once. Raises `ConfigError` for one without a file."""
        return find_files(self.paths, "data.sources.*.paths")[0]

    def holds(self, directory: Path) -> bool:
        names = [typed_name(path, "data.sources.*.paths") for path in self.paths]
        return any(Path(name).resolve() in directory.resolve().parents for name in names if not is_remote(name))

    def left_out(self) -> dict[str, int]:
        return find_files(self.paths, "data.sources.*.paths")[1].settled()


@register("source", "text")
@dataclass(kw_only=True)
class TextSource(FileSource):
    """Plain text files, also compressed (gzip, xz, bzip2, zstd)."""

    documents: Cut = Cut.auto  # where documents end: file, line, blank_line; auto: file, parts of 4 MiB of long ones

    @property
    def document(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return {Cut.auto: "part of about 4 MiB", Cut.blank_line: "paragraph"}.get(self.documents, self.documents.value)

    @property
    def in_parts(self) -> bool:
        return self.documents is Cut.auto

    def settled(self, inputs: list[Input]) -> Self:
        """Let documents be whole files, unless one is too long."""
        if self.documents is Cut.auto and all(entry.size <= PART_BYTES for entry in inputs):
            return replace(self, documents=Cut.file)
        return self

    def ranges(self, inputs: list[Input], unit_bytes: int) -> Iterator[tuple[FileRange, int]]:
        return byte_ranges(inputs, unit_bytes, divisible=self.documents is not Cut.file)

    def read(self, part: FileRange, bad: BadRecords) -> Iterator[Raw]:
        by_lines = self.documents in (Cut.line, Cut.blank_line)
        with open_bytes(part.file, *([unlike_lines] if by_lines else [])) as stream:
            match self.documents:
                case Cut.auto:
                    yield from parts(stream, *part)
                case Cut.file:
                    yield from whole(stream, part.file)
                case Cut.line:
                    yield from lines(stream, *part)
                case Cut.blank_line:
                    yield from paragraphs(stream, *part)


@register("source", "stdlib")
@dataclass(kw_only=True)
class StdlibSource(ReadableSource):
    """The source code of the running Python's own standard library, about 11 MB: text that is always there."""

    document = "file"

    def inputs(self) -> list[Input]:
        root = Path(sysconfig.get_path("stdlib"))
        files: list[Path] = []
        for directory, subdirectories, names in os.walk(root):
            subdirectories[:] = sorted(set(subdirectories) - STDLIB_LEFT_OUT)  # not even entered
            files += (Path(directory, name) for name in sorted(names) if name.endswith(".py"))
        if not files:
            raise ConfigError(f"source=stdlib: {root} holds no Python source; choose another source")
        return [file_input(str(file), file.relative_to(root).as_posix()) for file in files]

    def ranges(self, inputs: list[Input], unit_bytes: int) -> Iterator[tuple[FileRange, int]]:
        return byte_ranges(inputs, unit_bytes, divisible=False)

    def read(self, part: FileRange, bad: BadRecords) -> Iterator[Raw]:
        file = str(Path(sysconfig.get_path("stdlib"), part.file))
        with open_bytes(file) as stream:
            yield from whole(stream, file)


def byte_ranges(inputs: list[Input], unit_bytes: int, divisible: bool) -> Iterator[tuple[FileRange, int]]:
    """Yield each file whole or, if it is divisible and not compressed, in ranges of `unit_bytes`; with sizes in bytes.

    A remote file whose store gives no parts is whole, too. Only files that are longer than a unit are looked at.
    """
    for name, size, _ in inputs:
        if size <= unit_bytes or not divisible or not has_parts(name) or is_compressed(name):
            yield FileRange(name, 0, None if size else 0), size
        else:
            for start in range(0, size, unit_bytes):
                stop = min(start + unit_bytes, size)
                yield FileRange(name, start, stop), stop - start

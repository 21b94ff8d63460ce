"""The settings of preparing a corpus.

Holds their checks; what they do is in `build` and `encode`, which of them decide the name of a corpus in `cache_key`.
Free of torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pretrain.data.manifest import PAGE_BYTES
from pretrain.data.sources.bad_records import OnInvalid
from pretrain.errors import check
from pretrain.settings.paths import expanded


@dataclass(kw_only=True)
class PrepareConfig:
    """How text becomes a corpus of token ids."""

    root: str = "corpora"  # directory that holds all prepared corpora
    held_out: float = 0.01  # fraction kept for validation: of the documents or, where these are few, of each its end
    workers: int = 0  # processes; 0 = one for each core that this process may use
    on_invalid: OnInvalid = OnInvalid.replace  # invalid UTF-8, NUL bytes and bad records: replace, skip or fail
    max_repeats: int | None = None  # leave out documents with 1 to 13 tokens so many times in a row; null: keep them
    unit_bytes: int = 0  # bytes of input that become one shard; 0 = a 64th of the source, 1 MiB to 128 MiB
    batch_bytes: int = 4 * 2**20  # bytes of ids in one record batch of a shard, held in memory until it is full
    verify: bool = False  # python -m pretrain.prepare reads every shard again and compares hashes
    parts: int = 1  # python -m pretrain.prepare, started so many times, each with another part, shares the units out
    part: int = 0  # which units this process prepares: those whose number modulo parts is part

    def __post_init__(self) -> None:
        check(bool(self.root), "data.prepare.root", repr(self.root), "name a directory")
        check(0 <= self.held_out < 1, "data.prepare.held_out", self.held_out, "a fraction from 0 to below 1")
        check(self.workers >= 0, "data.prepare.workers", self.workers, "0 (every core) or more")
        most, rule = self.max_repeats, "at least 2 times in a row (32 is usual), or null to keep all documents"
        check(most is None or most >= 2, "data.prepare.max_repeats", most, rule)
        check(self.unit_bytes >= 0, "data.prepare.unit_bytes", self.unit_bytes, "0 (by size) or more")
        rule = f"at least {PAGE_BYTES} bytes"
        check(self.batch_bytes >= PAGE_BYTES, "data.prepare.batch_bytes", self.batch_bytes, rule)
        check(self.parts >= 1, "data.prepare.parts", self.parts, "1 (prepare the whole) or more")
        rule = f"a number from 0 to below data.prepare.parts={self.parts}"
        check(0 <= self.part < self.parts, "data.prepare.part", self.part, rule)

    @property
    def directory(self) -> Path:
        """Return the directory of all prepared corpora."""
        return Path(expanded(self.root, "data.prepare.root"))

    def check_whole(self) -> None:
        """Raise `ConfigError` if this prepares only a part, where a whole corpus is needed."""
        rule = "only python -m pretrain.prepare does a part, and without parts commits them all; leave it out here"
        check(self.parts == 1, "data.prepare.parts", self.parts, rule)

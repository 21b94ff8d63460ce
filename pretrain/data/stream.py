"""From sequence numbers to slots of tokens: training and held-out streams as pure functions.

Holds how sources, order and packing come together; batches and the thread that builds them are in `loader`.

The layout. A split is one stream of token ids, document after document, each with the ids of its template around it.
`packing` cuts the stream into slots: a slot is a list of chunks, and a chunk is a range of the stream inside one
document. Training numbers slots without end: sequence number g -> (source, epoch, slot of that source), its key. A
micro-batch of B keys becomes one flat array of N tokens, the chunks of the first slot, then those of the second, and so
on. Three arrays divide it, each finer than the one before:

    slots    [0, ..., N]  B+1 entries, where slots begin
    offsets  [0, ..., N]  S+1 entries, where sequences begin: what attention and positions may not cross
    at       [0, ..., N]  P+1 entries, where chunks begin (internal: a window is up to four chunks, one sequence)

`following` holds the id after each token. After the last token of a chunk that is the next token of the stream if the
document continues there, although that token lies in another slot; if the document ends with the chunk, the id that
leads the next document where documents have no id at their end, else IGNORED. So a cut costs no target. Tokens that a
window repeats from the one before have none here: they have theirs there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from pretrain.data.batch import IGNORED, Slots
from pretrain.data.corpus import Corpus
from pretrain.data.lengths import Share, shares_of
from pretrain.data.manifest import Manifest
from pretrain.data.order import BLOCK, Mixture, Permutation
from pretrain.data.packing import Chunks, Packer, Packing, pack
from pretrain.errors import DataError

CORPUS = "the corpus of "  # how the names of fingerprints of whole corpora begin
FAR_SHORTER = 4  # times shorter than a slot: most of the context that is paid for is never used
_SAMPLE = 64  # slots from which the length of sequences is estimated


@dataclass(frozen=True)
class PackedSource:
    """One split of the corpus of one source, cut into slots."""

    name: str
    corpus: Corpus
    packer: Packer
    seq_len: int  # tokens
    packing: Packing
    stride: int  # tokens that neighbouring windows share

    @classmethod
    def open(
        cls, name: str, directory: Path, split: str, *, seq_len: int, packing: Packing, stride: int = 0, partial: bool
    ) -> Self:
        """Open a split: for training, or with `partial` slots for complete coverage."""
        corpus = Corpus.open(directory, split)
        packer = pack(packing, corpus, seq_len, stride=stride, partial=partial)
        return cls(name, corpus, packer, seq_len, packing, stride)


class _Layout(NamedTuple):
    """The chunks of a micro-batch, each with its source and its place in the flat batch."""

    sources: np.ndarray  # (P,) int64
    chunks: Chunks  # of all sources, in batch order
    at: np.ndarray  # (P+1,) int64, where chunks begin in the batch


class _Stream:
    """Slots of several sources, read into one flat micro-batch."""

    def __init__(self, sources: Sequence[PackedSource], *, isolate: bool) -> None:
        self.sources = sources
        self._isolate = isolate

    def read(self, keys: np.ndarray) -> Slots:
        """Return the slots of keys (B, 3), in that order. Raises `DataError` for damaged data."""
        layout = self._lay_out(keys)
        tokens, following = self._read_tokens(layout)
        slots = layout.at[np.concatenate([[0], layout.chunks.counts.cumsum()])]
        offsets = np.concatenate([layout.at[:-1][layout.chunks.opens], slots[-1:]]) if self._isolate else slots
        return Slots(tokens, following, offsets.astype(np.int32), slots, keys)

    def _lay_out(self, keys: np.ndarray) -> _Layout:
        """Return the chunks of slots (B, 3) in the order of the slots, whatever sources they come from."""
        present = dict.fromkeys(keys[:, 0].tolist())
        rows = [np.flatnonzero(keys[:, 0] == source) for source in present]
        parts = [self.sources[source].packer.chunks(keys[own, 2]) for source, own in zip(present, rows, strict=True)]
        slot = np.concatenate([own.repeat(part.counts) for own, part in zip(rows, parts, strict=True)])
        in_order = np.argsort(slot, kind="stable")
        columns = zip(*(part[:-1] for part in parts), strict=True)
        chunks = Chunks(
            *(np.concatenate(column)[in_order] for column in columns), counts=np.bincount(slot, minlength=len(keys))
        )
        at = np.concatenate([[0], chunks.lengths.cumsum()])
        return _Layout(keys[slot[in_order], 0], chunks, at)

    def _read_tokens(self, layout: _Layout) -> tuple[np.ndarray, np.ndarray]:
        """Return the tokens (N,) of the chunks and the id that follows each in its document's stream (N,)."""
        starts, lengths, closed, _, context, _ = layout.chunks
        num_tokens = layout.at[-1]
        after = np.empty_like(starts)  # what follows the last token of each chunk
        tokens = np.empty(num_tokens + len(starts), dtype=np.int64)  # the ids of the chunks, then some of `after`
        for source in dict.fromkeys(layout.sources.tolist()):
            corpus = self.sources[source].corpus
            own = np.flatnonzero(layout.sources == source)
            after[own] = _after_document(corpus)
            cut = own[~(closed | context)[own]]  # the document continues after the chunk: read one more token
            corpus.copy(
                np.concatenate([starts[own], starts[cut] + lengths[cut]]),
                np.concatenate([lengths[own], np.ones_like(cut)]),
                tokens,
                np.concatenate([layout.at[own], num_tokens + cut]),
            )
            after[cut] = tokens[num_tokens + cut]
        following = tokens[1 : num_tokens + 1].copy()
        following[layout.at[1:] - 1] = after
        following[np.repeat(context, lengths)] = IGNORED  # these tokens have their targets in another chunk
        return tokens[:num_tokens], following


class TrainStream(_Stream):
    """The endless training data: slot number g is a pure function of (seed, g)."""

    def __init__(self, sources: Sequence[PackedSource], weights: list[float], *, seed: int, isolate: bool) -> None:
        """Interleave sources by weight (shares of slots).

        They have one tokenizer, as `prepare` checks. Raises `DataError` for a source without a single slot.
        """
        super().__init__(sources, isolate=isolate)
        for source in sources:
            if not source.packer.num_slots:
                raise DataError(
                    f"data.sources.{source.name}: {source.corpus.num_tokens} training tokens, fewer than one slot of "
                    f"data.seq_len={source.seq_len}; lower data.seq_len or add text"
                )
        self._mixture = Mixture(weights, [source.packer.num_slots for source in sources])
        self._seed = seed
        self._weights = weights

    @property
    def manifest(self) -> Manifest:
        """What all sources have in common: vocabulary and document template (`prepare` checks it)."""
        return self.sources[0].corpus.manifest

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What decides, beside the seed, which tokens a slot holds: the name of a setting or a corpus -> its value."""
        first = self.sources[0]
        seen: dict[str, Any] = {"tokenizer": self.manifest.tokenizer_sha256[:16]}
        seen |= {"data.seq_len": first.seq_len, "data.packing": first.packing.value}
        seen |= {"data.isolate_documents": self._isolate}
        if first.packing is Packing.windows:
            seen |= {"data.stride": first.stride}
        for source, weight in zip(self.sources, self._weights, strict=True):
            key = f"data.sources.{source.name}"
            seen |= {f"{CORPUS}{key}": source.corpus.manifest.fingerprint[:16], f"{key}.weight": weight}
        return seen

    @property
    def num_slots(self) -> dict[str, int]:
        """Slots in one epoch of each source."""
        return {source.name: source.packer.num_slots for source in self.sources}

    @property
    def lengths(self) -> list[Share]:
        """Lengths of the sequences that tokens lie in, over the first slots: what attention costs."""
        return shares_of(np.diff(self.slots(np.arange(_SAMPLE)).offsets))

    def epochs(self, num_slots: int) -> dict[str, float]:
        """Return how often each source is seen when training draws `num_slots` slots."""
        shares = self._mixture.quotas / BLOCK
        return {
            source.name: float(share) * num_slots / source.packer.num_slots
            for source, share in zip(self.sources, shares, strict=True)
        }

    def advice(self, batch_size: int) -> Iterator[str]:
        """Yield what will disappoint in training with `batch_size` slots a step, and what to do about it."""
        seq_len, packing = self.sources[0].seq_len, self.sources[0].packing
        if (slots := sum(self.num_slots.values())) < batch_size:
            rule = f"which a step takes several times; lower that, or data.seq_len={seq_len}, or add text"
            yield f"train.batch_size={batch_size}: more than the {slots:,} slots that the text has, {rule}"
        for source in self.sources if self._isolate else ():
            split = source.corpus.manifest.splits["train"]
            if split.tokens < seq_len / FAR_SHORTER * split.documents:
                mean = f"its documents have {split.tokens / split.documents:.0f} tokens on average"
                rule = f"far below data.seq_len={seq_len}, and a model sees one at a time; lower that"
                joined = "" if packing is Packing.windows else ", set data.isolate_documents=false"
                yield f"data.sources.{source.name}: {mean}, {rule}{joined}, or make longer documents of the text"

    def locate(self, numbers: np.ndarray) -> np.ndarray:
        """Return source, epoch and slot (B, 3) int64 of sequence numbers (B,) int64."""
        sources, epochs, indices = self._mixture.locate(numbers)
        keys = np.stack([sources, epochs, indices], axis=1)
        for source, epoch in dict.fromkeys(zip(sources.tolist(), epochs.tolist(), strict=True)):
            drawn = (sources == source) & (epochs == epoch)
            size = self.sources[source].packer.num_slots
            shuffle = Permutation(size, seed=self._seed, source=source, epoch=epoch)
            keys[drawn, 2] = shuffle(indices[drawn])
        return keys

    def slots(self, numbers: np.ndarray) -> Slots:
        """Return the slots with these sequence numbers (B,) int64, in order. Raises `DataError` for damaged data."""
        return self.read(self.locate(numbers))


class HeldOut(_Stream):
    """Text that is measured: splits of sources, one after another; each target of each lies in exactly one slot."""

    def __init__(self, sources: Sequence[PackedSource], *, isolate: bool) -> None:
        """Join sources, which were opened with partial slots."""
        super().__init__(sources, isolate=isolate)
        self._firsts = np.cumsum([0, *(source.packer.num_slots for source in sources)])
        self.num_slots = int(self._firsts[-1])
        self.num_targets = sum(_num_targets(source.corpus) for source in sources)
        self.text_bytes = sum(source.corpus.text_bytes for source in sources)  # UTF-8 bytes of the source text

    def slots(self, numbers: np.ndarray) -> Slots:
        """Return slots (B,) int64, all in range(num_slots). Raises `DataError` for damaged data."""
        sources = np.searchsorted(self._firsts, numbers, side="right") - 1
        return self.read(np.stack([sources, np.zeros_like(sources), numbers - self._firsts[sources]], axis=1))


def _after_document(corpus: Corpus) -> int:
    """Return the target after a document's last token.

    If documents end without an id of their own, the separator that leads the next one marks the end (GPT-2's
    <|endoftext|>) and is a target as such, also after the last document. Otherwise nothing follows.
    """
    manifest = corpus.manifest
    return manifest.prefix[0] if manifest.prefix and not manifest.suffix else IGNORED


def _num_targets(corpus: Corpus) -> int:
    if _after_document(corpus) != IGNORED:
        return corpus.num_tokens
    return corpus.num_tokens - int(np.count_nonzero(corpus.document_lengths()))

"""How far general-purpose compressors get on the held-out text: a yardstick for bits per byte.

Holds reading the text back and compressing it; the page shows the figures. Free of torch.
"""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from pretrain.data.corpus import Corpus

LARGEST = 32 * 2**20  # bytes of text; xz takes about a second for each MB


def held_out_text(directory: Path) -> bytes | None:
    """Return the source text of a corpus's validation split; None if it is too large or cannot be recovered exactly.

    The text is decoded from the ids. Tokenizers that change text, by lower-casing for example, lose the original.
    """
    corpus = Corpus.open(directory, "validation")
    if corpus.text_bytes > LARGEST:
        return None
    first, last = len(corpus.manifest.prefix), len(corpus.manifest.suffix)
    ends = np.cumsum(corpus.document_lengths())
    documents = np.split(corpus.read(0, corpus.num_tokens), ends[:-1])
    ids = [document[first : len(document) - last].tolist() for document in documents]
    tokenizer = corpus.manifest.tokenizer(directory)
    text = "".join(tokenizer.decode_batch(ids, skip_special_tokens=False)).encode()
    return text if len(text) == corpus.text_bytes else None


def compression_baselines(data: bytes) -> dict[str, float]:
    """Return the bits per byte that general-purpose compressors reach on `data`; empty for no data.

    One stream over all of it, as `gzip -9` and `xz -9` would write.
    """
    if not data:
        return {}
    compressed = {"gzip -9": gzip.compress(data, compresslevel=9), "xz -9": lzma.compress(data, preset=9)}
    return {name: 8 * len(packed) / len(data) for name, packed in compressed.items()}


def baselines(corpora: Iterable[Path]) -> dict[str, float]:
    """Return what compressors reach on the held-out text of all corpora together; empty if it cannot be read back."""
    texts = [held_out_text(path) if (path / "manifest.json").exists() else None for path in corpora]
    return {} if None in texts else compression_baselines(b"".join(text for text in texts if text))

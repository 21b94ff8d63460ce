"""What is held out for validation: whole documents by their hash or, where these are few, the end of each.

Holds that choice for one document; which of the two it is for a source is decided in `survey`. Free of torch.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

from pretrain.data.sources.documents import boundary


class Part(NamedTuple):
    """What one split gets of a document: all of it, or its beginning or its end."""

    split: str
    text: str
    size: int  # bytes in UTF-8


@dataclass(frozen=True)
class HeldOut:
    """How the documents of a source are divided. Neither way looks at more than one document."""

    fraction: float
    by_position: bool

    def parts(self, text: str) -> list[Part]:
        """Divide a document, never within a character; a part of white space alone is left out."""
        data = text.encode()
        if not self.by_position:
            return [Part("validation" if is_held_out(data, self.fraction) else "train", text, len(data))]
        cut = position(data, self.fraction)
        divided = ("train", data[:cut]), ("validation", data[cut:])
        return [Part(split, part.decode(), len(part)) for split, part in divided if part.strip()]


def position(data: bytes, fraction: float) -> int:
    """Return where in a document the part begins that is held out by position, at most `fraction` of its bytes.

    It is moved to a better place, a paragraph say, by at most half of its length.
    """
    length = int(len(data) * fraction)
    start = len(data) - length
    return boundary(data, start, start + length // 2)


def is_held_out(data: bytes, fraction: float) -> bool:
    """Return whether a document belongs to the validation split.

    It depends on the document's UTF-8 bytes alone: as a corpus grows no document changes sides, and copies of a
    document are all on one side.
    """
    digest = hashlib.blake2b(data, digest_size=8, key=b"headwater held-out").digest()
    return int.from_bytes(digest, "big") < fraction * 2**64

"""Makes small prepared corpora on disk, straight from the format that `pretrain.data.manifest` describes.

Written apart from `pretrain.data.prepare.build`, so that writer and reader are checked against a third party.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from pretrain.data.manifest import PAGE_BYTES, Manifest, Shard, Split

Documents = Sequence[Sequence[int]]


def write_corpus(
    directory: Path,
    train: Documents,
    validation: Documents = (),
    *,
    dtype: str = "uint16",
    vocab_size: int = 50257,
    prefix: Sequence[int] = (),
    suffix: Sequence[int] = (),
    mask: int | None = None,
    per_shard: int = 1 << 30,
    per_batch: int = 1 << 30,
    tokenizer: str = "{}",
) -> Path:
    """Write documents (rows with their templates), so many per shard and record batch; return the directory."""
    directory.mkdir(parents=True)
    (directory / "tokenizer.json").write_text(tokenizer)
    canonical = json.dumps(json.loads(tokenizer), sort_keys=True, separators=(",", ":"))
    splits = {}
    for name, documents in (("train", train), ("validation", validation)):
        groups = [documents[start : start + per_shard] for start in range(0, len(documents), per_shard)]
        splits[name] = Split(
            shards=[
                _write_shard(directory / f"{name}-{number:05}.arrow", group, dtype, per_batch)
                for number, group in enumerate(groups)
            ]
        )
    Manifest(
        source={},
        dtype=dtype,
        vocab_size=vocab_size,
        tokenizer_sha256=hashlib.sha256(canonical.encode()).hexdigest(),
        prefix=list(prefix),
        suffix=list(suffix),
        mask=mask,
        splits=splits,
        skipped={},
        versions={},
    ).save(directory)
    return directory


def _write_shard(path: Path, documents: Documents, dtype: str, per_batch: int) -> Shard:
    kind = pa.large_list(pa.field("item", pa.from_numpy_dtype(dtype), nullable=False))
    schema = pa.schema([pa.field("tokens", kind, nullable=False)])
    crcs: list[int] = []
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for start in range(0, len(documents), per_batch):
            rows = documents[start : start + per_batch]
            offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
            values = np.array([token for row in rows for token in row], dtype=dtype)
            column = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values), type=kind)
            writer.write_batch(pa.record_batch([column], schema=schema))
            raw = values.tobytes()
            crcs += [zlib.crc32(raw[at : at + PAGE_BYTES]) for at in range(0, len(raw), PAGE_BYTES)]
            crcs.append(zlib.crc32(offsets.tobytes()))
    checksums = np.array(crcs, dtype="<u4").tobytes()
    path.with_suffix(".crc").write_bytes(checksums)
    return Shard(
        file=path.name,
        documents=len(documents),
        tokens=sum(map(len, documents)),
        text_bytes=sum(map(len, documents)) * 4,
        size=path.stat().st_size,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        crc_sha256=hashlib.sha256(checksums).hexdigest(),
    )


def edit_json(path: Path, edit: Callable[[dict], object]) -> None:
    """Change a JSON file by hand: without its seal, so that other checks have to see what is wrong."""
    content = json.loads(path.read_text())
    content.pop("sha256", None)
    edit(content)
    path.write_text(json.dumps(content))

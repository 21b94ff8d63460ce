"""What will disappoint at the end of a run, said at its start.

Holds the warnings; what cannot work is refused by the settings themselves.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from pretrain.data.packing import Packing
from pretrain.data.stream import TrainStream
from pretrain.hub.export_dir import warn_unless_exportable
from pretrain.train.run_dir.record import read_record

log = logging.getLogger(__name__)


def advise(cfg: Any, stream: TrainStream, tokenizer: Tokenizer, directory: Path) -> None:
    """Warn of what will disappoint at the end of the run, while it costs nothing to change it."""
    if cfg.objective.wants_special_tokens and cfg.data.packing is Packing.concat:
        log.warning(
            "data.packing=concat: documents are cut where slots end, and an encoder learns from their parts without "
            "the tokens around a document ([CLS], [SEP]); data.packing=windows gives these to every sequence"
        )
    for advice in stream.advice(cfg.train.batch_size):
        log.warning("%s", advice)
    for source in stream.sources:
        if not source.corpus.manifest.hashes_checksums:
            log.info(
                "data.sources.%s: a corpus of an older version; a shard that was changed together with its checksums "
                "is not noticed, but by data.prepare.verify=true or once it is prepared again",
                source.name,
            )
    warn_unless_exportable("pretrain", cfg.model, read_record(directory), tokenizer)

"""`tracker=tensorboard`: event files in the run directory, in addition to metrics.jsonl and the console.

Holds everything that knows TensorBoard.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from pretrain.errors import ConfigError
from pretrain.registry import register
from pretrain.tracking.base import Record, Sample, Sink, scalars
from pretrain.tracking.local_tracker import TrackerConfig

FLUSH_S = 10  # seconds until a written event is on disk


@register("tracker", "tensorboard")
@dataclass(kw_only=True)
class TensorBoardConfig(TrackerConfig):
    """Event files under `<run>/tensorboard`; show them with `tensorboard --logdir`."""

    def __post_init__(self) -> None:
        if find_spec("tensorboard") is None:
            raise ConfigError('tracker=tensorboard: the package is not installed; pip install "headwater[tensorboard]"')

    def services(self, run_dir: Path, run_name: str, config: Mapping[str, object], start_step: int) -> list[Sink]:
        """Open an event file."""
        return [TensorBoardSink(run_dir / "tensorboard", start_step)]


class TensorBoardSink(Sink):
    """Writes scalars and texts; events that a killed run left for steps after `start_step` are marked as void."""

    def __init__(self, directory: Path, start_step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # A new run also voids step 0, which an earlier start may have written.
        self._writer = SummaryWriter(directory, purge_step=start_step + 1 if start_step else 0, flush_secs=FLUSH_S)

    def log(self, record: Record) -> None:
        """Write one event for each known number."""
        for name, value in scalars(record).items():
            self._writer.add_scalar(name, value, record["step"])

    def sampled(self, step: int, samples: Sequence[Sample]) -> None:
        """Write one text; TensorBoard reads it as Markdown, in which indented lines are shown as they are."""
        blocks = (textwrap.indent("".join(sample), "    ", lambda line: True) for sample in samples)
        self._writer.add_text("samples", "\n\n---\n\n".join(blocks), step)

    def close(self, exit_code: int) -> None:
        """Write what is pending and close the file."""
        self._writer.close()

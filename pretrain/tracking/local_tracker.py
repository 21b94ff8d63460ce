"""`tracker=local`: metrics.jsonl, samples.jsonl and the console, which every run has.

Holds the base class of all tracker settings; `wandb_sink` and `tensorboard_sink` add a service.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pretrain.errors.redaction import redacted
from pretrain.registry import register
from pretrain.tracking.base import Sink, Tracker
from pretrain.tracking.console import ConsoleSink
from pretrain.tracking.jsonl import METRICS_FILE, SAMPLES_FILE, JsonlSink, SamplesSink


@register("tracker", "local")
@dataclass(kw_only=True)
class TrackerConfig:
    """Where the numbers of a run go. Credentials are never fields: services read them from their own environment."""

    progress: bool = True  # a bar where standard output is a terminal that has room for it; false: lines there too

    def check_run(self, name: str, config: Mapping[str, object]) -> None:
        """Raise `ConfigError` for a run that a service would refuse: its name, or its configuration as plain values."""

    def build(
        self,
        *,
        run_dir: Path,
        run_name: str,
        total_steps: int,
        config: Mapping[str, object],
        start_step: int = 0,
        work: Callable[[int], float] = float,
    ) -> Tracker:
        """Open every sink; called on rank 0 only, which holds the lock of `run_dir`.

        `config` is the run's whole configuration as plain values; services get it without secrets. `start_step` is the
        step from which a run resumes, 0 for a new one: lines of later steps are removed from both files. `work` says
        what the first so many steps cost together, in any unit.
        """
        truth = JsonlSink(run_dir / METRICS_FILE)
        kept = start_step or -1  # a new run writes the lines of step 0 again, too
        truth.truncate_after(kept)
        samples = SamplesSink(run_dir / SAMPLES_FILE, kept)
        console = ConsoleSink(total_steps=total_steps, start_step=start_step, work=work, bar=self.progress)
        services = self.services(run_dir, run_name, redacted(dict(config)), start_step)
        return Tracker(truth, [samples, console, *services])

    def services(self, run_dir: Path, run_name: str, config: Mapping[str, object], start_step: int) -> list[Sink]:
        """Return the sinks that a tracker adds to the console and metrics.jsonl."""
        return []

"""Profiling a few steps of a run: a trace, the history of a GPU's memory, and the costliest operators.

Holds when the profiler runs and what it writes. The loop knows nothing of it: it draws its steps through
`StepProfiler.over`, and hooks tell the end of a step. Without `profile.steps` there is no `StepProfiler`.
"""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.autograd.profiler import record_function
from torch.profiler import ProfilerActivity, profile

from pretrain.data.batch import Batch
from pretrain.distributed.world import World
from pretrain.errors import check
from pretrain.files import replace_file
from pretrain.train.loop import TrainState
from pretrain.train.metrics import Throughput
from pretrain.train.profiling.operators import STEP_SPAN, as_lines, operator_table, table_path, what_is_counted

LONGEST = 10  # steps of a window: each may be 100,000 events, which are held in memory and written at its end
MEMORY_EVENTS = 100_000  # allocations and frees that are kept, the newest; each is some kilobytes

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class ProfileConfig:
    """Which steps of a run are profiled: none by default."""

    steps: list[int] = field(default_factory=list)  # [10,13]: optimizer steps after step 10 up to step 13; []: none
    ranks: list[int] = field(default_factory=lambda: [0])  # that write a trace each

    def __post_init__(self) -> None:
        check(len(self.steps) in (0, 2), "profile.steps", self.steps, "two steps such as [10,13], or []")
        if self.steps:
            first, last = self.steps
            check(0 <= first < last, "profile.steps", self.steps, "the first must be 0 or more, and below the last")
            rule = f"at most {LONGEST} steps: a trace holds every operator of each; take fewer"
            check(last - first <= LONGEST, "profile.steps", self.steps, rule)
        rule = "at least one rank, each 0 or more and once"
        distinct = bool(self.ranks) and len({*self.ranks}) == len(self.ranks) and min(self.ranks) >= 0
        check(distinct, "profile.ranks", self.ranks, rule)
        rule = "nothing is profiled without profile.steps; set it, such as [10,13], or leave this out"
        check(bool(self.steps) or self.ranks == [0], "profile.ranks", self.ranks, rule)

    def check_ranks(self, ranks: int) -> None:
        """Raise `ConfigError` for a rank that a run of so many ranks does not have."""
        rule = f"the run has ranks 0 to {ranks - 1}; name some of these"
        check(not self.steps or max(self.ranks) < ranks, "profile.ranks", self.ranks, rule)

    def check_steps(self, total: int) -> None:
        """Raise `ConfigError` for a window that ends after the run's last step."""
        rule = f"the run has {total:,} optimizer steps; name steps before its end"
        check(not self.steps or self.steps[1] <= total, "profile.steps", self.steps, rule)

    def build(self, run: Path, state: TrainState, world: World, throughput: Throughput) -> StepProfiler | None:
        """Return what profiles the run of a directory as it moves on with `state`; None if nothing is left to do."""
        if not self.steps or state.step >= self.steps[1]:
            return None
        return StepProfiler(self, run, state, world, throughput)


class StepProfiler:
    """Profiles the steps of a window, as far as this start of the run takes them.

    Training speed leaves these steps out: on every rank, for the others wait for those that write.
    """

    def __init__(self, cfg: ProfileConfig, run: Path, state: TrainState, world: World, throughput: Throughput) -> None:
        self._first, self._last = cfg.steps
        self._run, self._state, self._world, self._throughput = run, state, world, throughput
        self._writes = world.rank in cfg.ranks
        self._profile: profile | None = None
        self._began: int | None = None  # steps done when recording began
        self._span: Any = None  # of the step under way

    def over(self, steps: Iterable[list[Batch]]) -> Generator[list[Batch], None, None]:
        """Yield the steps. One begins when it is drawn, so that waiting for its data belongs to it."""
        try:
            self._begin_step()
            for micro_batches in steps:
                yield micro_batches
                self._begin_step()
        finally:
            self._give_up()

    def end_step(self) -> None:
        """See the end of a step, before it is logged, evaluated or saved; after the last one write the files."""
        step = self._state.step
        if not self._first < step <= self._last:
            return
        if self._span is not None:
            self._span.__exit__(None, None, None)
            self._span = None
        if step == self._last and self._profile is not None:
            self._write(self._profile)
            self._profile = None
        self._throughput.restart(step, self._state.tokens)

    def _begin_step(self) -> None:
        """Get ready a step ahead: the first kernels under CUPTI are slow ones, and are not to be in the trace."""
        step = self._state.step
        if not self._writes or not self._first - 1 <= step < self._last:
            return
        if self._profile is None:
            activities = [ProfilerActivity.CPU]
            if self._world.device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
            with self._throughput.paused():
                self._profile = profile(activities=activities, record_shapes=True)
                self._profile.prepare_trace()
        if step < self._first:
            return
        if self._began is None:
            self._began = step
            if self._world.device.type == "cuda":
                torch.cuda.memory._record_memory_history(max_entries=MEMORY_EVENTS, stacks="python")
            self._profile.start_trace()
        self._span = record_function(f"{STEP_SPAN}{step + 1}")
        self._span.__enter__()

    def _write(self, profiled: profile) -> None:
        """Stop, which waits for the device, and write the files; a full disk is told of, and the run goes on."""
        profiled.stop_trace()
        path = table_path(self._run, self._first, self._last, self._world.rank)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if self._world.device.type == "cuda":
                snapshot = torch.cuda.memory._snapshot()
                torch.cuda.memory._record_memory_history(enabled=None)
                replace_file(path.with_suffix(".memory.json.gz"), [compressed(snapshot)])
            trace = path.with_suffix(".trace.json.gz")
            partial = trace.with_name(f".tmp-{trace.name}")
            profiled.export_chrome_trace(str(partial))
            partial.replace(trace)
            table = operator_table(profiled.events() or [], self._world.device.type)
            replace_file(path, [json.dumps(table, indent=1).encode()])
        except OSError as error:
            log.warning("profile.steps: cannot write %s (%s); the run goes on without a profile", path.parent, error)
            return
        resumed = f", after a resume at step {self._began}" if self._began != self._first else ""
        log.info(
            "profiled %d steps up to step %d%s, in %s; %s\n%s",
            *(table["steps"], self._last, resumed, path.parent, what_is_counted(table), as_lines(table)),
        )

    def _give_up(self) -> None:
        """Stop a profile whose last step the run did not reach; there may be no time left to write it."""
        if self._profile is None:
            return
        if self._began is None:
            self._profile.start_trace()  # as torch does: what is prepared cannot be stopped
        self._profile.stop_trace()
        self._profile = None
        if self._world.device.type == "cuda":
            torch.cuda.memory._record_memory_history(enabled=None)
        log.warning("the run ended at step %d, within profile.steps: no profile is written", self._state.step)


@contextmanager
def drawn(steps: Iterable[list[Batch]], profiler: StepProfiler | None) -> Iterator[Iterable[list[Batch]]]:
    """Give the steps, through the profiler if there is one, which stops at the end of the block wherever it is."""
    if profiler is None:
        yield steps
    else:
        with closing(profiler.over(steps)) as profiled:
            yield profiled


def compressed(snapshot: Mapping[str, Any]) -> bytes:
    """Return a snapshot of CUDA's allocator as compressed JSON: torch's own file of it is a pickle."""
    return gzip.compress(json.dumps(snapshot, default=str, separators=(",", ":")).encode(), compresslevel=3)

"""What people see while a run trains: a progress bar on a terminal that has room, one line per record elsewhere.

Holds the drawing only; the numbers come with the records.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, TextIO

from pretrain.tracking.base import CHOICES, RAW, Record, Sample, Sink

if TYPE_CHECKING:
    from rich.progress import Progress

REDRAWS_PER_S = 2
BAR_COLUMNS = 80  # of a terminal: below it, the numbers beside a bar are cut off
PROMPT_CHARACTERS, SAMPLE_CHARACTERS = 24, 72  # of a sample that are shown

# record key, how its value reads
_TRAIN = (
    ("loss", "loss {:.4f}"),
    ("sentence_accuracy", "of sentences {:.1%}"),
    ("lr", "lr {:.2e}"),
    ("grad_norm", "grad norm {:.3g}"),
    ("tokens_per_s", "{:,.0f} tokens/s"),
    ("mfu", "MFU {:.1%}"),
)
_NO_ROOM = {"sentence_accuracy", "lr", "grad_norm"}  # beside a bar
_BAR = tuple(entry for entry in _TRAIN if entry[0] not in _NO_ROOM)

# Labels and formats of the metrics of evaluations, in the order that they are shown in. A metric that is in neither of
# these two is shown behind the others by its own name, unless it is of a part (f1/PER): a new one needs no line here.
# Accuracies on multiple-choice sets (choices/NAME) come last.
EVALUATION = {
    "loss": "loss {:.4f}",
    "perplexity": "perplexity {:.2f}",
    "accuracy": "accuracy {:.1%}",
    "sentence_accuracy": "of sentences {:.1%}",
    "replaced_accuracy": "of replaced tokens {:.1%}",
    "exact_match": "exact match {:.1%}",
    "f1": "F1 {:.1%}",
    "f1_macro": "macro F1 {:.1%}",
    "matthews": "Matthews {:.3f}",
    "pearson": "Pearson {:.3f}",
    "spearman": "Spearman {:.3f}",
    "bits_per_byte": "{:.4f} bits per byte",
}
LEFT_OUT = {
    *("step", "split", "tokens", "sentence_loss", "f1_micro", "no_answer_threshold"),
    *("has_answer_exact_match", "has_answer_f1", "no_answer_exact_match", "no_answer_f1"),
}


def takes_bar(stream: TextIO) -> bool:
    """Whether a stream is a terminal that can draw a line again and has room for a bar; elsewhere lines are printed."""
    if not stream.isatty():
        return False
    from rich.console import Console

    console = Console(file=stream)
    return not console.is_dumb_terminal and console.width >= BAR_COLUMNS


class ConsoleSink(Sink):
    """Shows loss, speed, MFU and time left."""

    def __init__(
        self,
        *,
        total_steps: int,
        start_step: int = 0,  # where a resumed run goes on
        work: Callable[[int], float] = float,  # what the first so many steps cost together, in any unit
        bar: bool = True,  # where a terminal has room for it; False: lines there too
        stream: TextIO | None = None,  # None = standard output
        clock: Callable[[], float] = time.monotonic,  # seconds
    ) -> None:
        self._stream = stream or sys.stdout
        self._total_steps = total_steps
        self._work = work
        self._clock = clock
        self._since = (start_step, clock())  # from where the pace is measured
        self._warm = False
        self._progress = self._open_bar(start_step) if bar and takes_bar(self._stream) else None

    def log(self, record: Record) -> None:
        """Show one record: training moves the bar, evaluation stays as a line above it."""
        step = record["step"]
        assert isinstance(step, int)
        if record["split"] != "train":
            self._print(step, [f"{record['split']}:", *_evaluation(record)])
            return
        left = self._time_left(step)
        if self._progress is None:
            self._print(step, [*_readable(record, _TRAIN), *_warnings(record), left])
        else:
            values = "  ".join([*_readable(record, _BAR), *_warnings(record)])
            self._progress.update(self._progress.task_ids[0], completed=step, values=values, left=left)

    def sampled(self, step: int, samples: Sequence[Sample]) -> None:
        """Show each sample on a line of its own, clipped: the end of the prompt, the beginning of what follows."""
        for prompt, continuation in samples:
            before, after = _on_one_line(prompt), _on_one_line(continuation) or "(the document ends)"
            before = before if len(before) <= PROMPT_CHARACTERS else f"...{before[3 - PROMPT_CHARACTERS :]}"
            after = after if len(after) <= SAMPLE_CHARACTERS else f"{after[: SAMPLE_CHARACTERS - 3]}..."
            self._print(step, ["sample:", f"[{before}]{after}"])

    def close(self, exit_code: int) -> None:
        """Leave the last state on the screen."""
        if self._progress is not None:
            self._progress.stop()

    def _print(self, step: int, parts: list[str]) -> None:
        line = "  ".join([f"step {step:>{len(str(self._total_steps))}}/{self._total_steps}", *parts])
        if self._progress is None:
            print(line, file=self._stream, flush=True)
        else:
            self._progress.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _time_left(self, step: int) -> str:
        """Return the time to the last step at the mean pace of work so far, e.g. `0:12:30 left`.

        Evaluations and checkpoints count; the first stretch, which holds imports and compilation, does not later.
        """
        (from_step, since), now = self._since, self._clock()
        pace = (now - since) / max(self._work(step) - self._work(from_step), 1)
        if not self._warm:
            self._since, self._warm = (step, now), True
        return f"{timedelta(seconds=round(pace * (self._work(self._total_steps) - self._work(step))))} left"

    def _open_bar(self, start_step: int) -> Progress:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        progress = Progress(
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[values]}"),
            TextColumn("{task.fields[left]}", style="progress.remaining"),
            console=Console(file=self._stream),
            refresh_per_second=REDRAWS_PER_S,
            expand=True,
        )
        progress.add_task("training", total=self._total_steps, completed=start_step, values="", left="")
        progress.start()
        return progress


def _on_one_line(text: str) -> str:
    """Return a text with one blank for each run of blanks and of what a terminal would obey: ends of lines, escapes."""
    return re.sub(r"\s+", " ", "".join(character if character.isprintable() else " " for character in text))


def _readable(record: Record, entries: tuple[tuple[str, str], ...]) -> list[str]:
    return [text.format(record[key]) for key, text in entries if record.get(key) is not None]


def _evaluation(record: Record) -> list[str]:
    others = [key for key in record if key not in EVALUATION.keys() | LEFT_OUT and "/" not in key]
    shown = _readable(record, (*EVALUATION.items(), *((key, f"{key} {{:.4g}}") for key in others)))
    sets = [key for key in record if key.startswith(CHOICES) and not key.endswith(RAW)]
    return shown + [f"{key.removeprefix(CHOICES)} {record[key]:.1%}" for key in sets]


def _warnings(record: Record) -> list[str]:
    skipped = [f"{record['skipped']} skipped"] if record.get("skipped") else []
    return skipped if record["loss"] is not None else ["no target", *skipped]

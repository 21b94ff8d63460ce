"""The page on runs of pretraining: curves, what was reached, samples, where the configurations differ.

Holds what the page says; `history` reads the runs, `curves` says what is drawn of them, and `writing` makes the files.
Free of torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from pretrain.report.baselines import baselines
from pretrain.report.curves import training_charts
from pretrain.report.history import History, Row, load, median_of, page_folder, until
from pretrain.report.page import (
    UNKNOWN,
    Cell,
    Figures,
    Number,
    Page,
    Section,
    Table,
    count,
    number,
    percent,
)
from pretrain.report.run_sections import (
    choices,
    configuration,
    differences,
    machine,
    notes,
    profiles,
    samples,
    saved,
    state,
)
from pretrain.report.spikes import spike_section
from pretrain.report.writing import write_page
from pretrain.train.run_dir.record import check_written_by

NAMED = 3  # runs whose names are the title
FIGURES = ("Held-out loss", "Bits per byte", "Accuracy", "Parameters", "Tokens seen", "Training time")  # shown first
RANKED = ("Held-out loss", "Best held-out loss", "Bits per byte", "Accuracy")  # columns of runs that are compared
RANKED += ("Last logged step", "Tokens seen", "Tokens per second, median", "Training time", "State")


def write_report(
    run: str | Path, *others: str | Path, out: str | Path | None = None, step: int | None = None
) -> tuple[Path, Path]:
    """Write a page on runs of pretraining, as of a `step` or as they are; return its HTML and its Markdown.

    It goes to the folder `out`, or else to `report/` in the first run. Raises `ConfigError` for a directory that is
    not a run of pretraining, or cannot be read.
    """
    paths = [Path(each) for each in (run, *others)]
    for path in paths:
        check_written_by("pretrain", path)
    histories = [load(path) for path in paths]
    if len({history.name for history in histories}) < len(histories):
        for history in histories:
            history.name = str(history.path)
    if step is not None:
        histories = until(histories, step)
    return write_page(page_of(histories, step), page_folder(paths[0], Path(out) if out else None))


def page_of(runs: Sequence[History], step: int | None = None) -> Page:
    """Return the page, of runs as they were at a step: curves, results, samples, where the configurations differ."""
    reached = [_reached(run) for run in runs]
    sections = [
        Section(
            "Curves",
            [
                training_charts(runs),
                "Where there are many points, the thick line is smoothed and the faint one is raw.",
            ],
        ),
        Section("What was reached", [*_ranking(runs, reached), _results(runs, reached), EXPLANATION]),
        *spike_section(runs),
        *choices(runs),
        *samples(runs),
        *profiles(runs),
        *differences(runs),
        configuration(runs),
        machine(runs),
    ]
    figures = {name: reached[0][name] for name in FIGURES if reached[0].get(name, UNKNOWN) != UNKNOWN}
    lead = [*([Figures(figures)] if len(runs) == 1 else []), *notes(runs)]
    title = " and ".join(run.name for run in runs) if len(runs) <= NAMED else f"{len(runs)} runs"
    kind = "Pretraining" if step is None else f"Pretraining · as of step {step:,}"
    return Page(title=title, kind=kind, lead=lead, sections=sections)


EXPLANATION = (
    "Loss is in nats per target; held-out values are of the last evaluation unless marked. Bits per byte of the "
    "compressors are over the same held-out text. MFU counts model FLOPs against dense peaks (PaLM, arXiv 2204.02311, "
    "appendix B). Training time leaves out evaluations and checkpoints."
)


def _results(runs: Sequence[History], reached: Sequence[dict[str, Cell]]) -> Table:
    titles = dict.fromkeys(title for column in sorted(reached, key=len, reverse=True) for title in column)
    rows = [[title, *(column.get(title, UNKNOWN) for column in reached)] for title in titles]
    known = [row for row in rows if any(cell != UNKNOWN for cell in row[1:])]
    return Table(["", *(run.name if len(runs) > 1 else "" for run in runs)], known)


def _ranking(runs: Sequence[History], reached: Sequence[dict[str, Cell]]) -> list[Table]:
    """Return a table with a row for each of several runs, to be sorted by what they reached."""
    if len(runs) == 1:
        return []
    shown = [title for title in RANKED if any(column.get(title, UNKNOWN) != UNKNOWN for column in reached)]
    rows = [[run.name, *(column[title] for title in shown)] for run, column in zip(runs, reached, strict=True)]
    return [Table(["run", *(title.lower() for title in shown)], rows)]


def _reached(run: History) -> dict[str, Cell]:
    """Return what the page says of a run: title of the row -> cell."""
    last, held_out = (rows[-1] if rows else {} for rows in (run.train, run.evaluation))
    compressors = baselines(Path(path) for path in run.facts.get("corpora", {}).values())
    return {
        "State": state(run),
        "Parameters": count(run.facts.get("parameters")),
        "Last logged step": number(run.last_step, digits=0),
        **saved(run, run.facts.get("best_step")),
        "Tokens seen": count((last or held_out).get("tokens")),
        "Training loss, last line": number(last.get("loss")),
        "Held-out loss": number(held_out.get("loss")),
        "Best held-out loss": _best(run),
        "Perplexity": number(held_out.get("perplexity"), digits=2),
        "Accuracy": percent(held_out.get("accuracy")),
        "Training loss on sentences, last line": number(last.get("sentence_loss")),
        "Loss on sentences": number(held_out.get("sentence_loss")),
        "Accuracy on sentences": percent(held_out.get("sentence_accuracy")),
        "Accuracy on replaced tokens": percent(held_out.get("replaced_accuracy")),
        "Bits per byte": number(held_out.get("bits_per_byte")),
        "Bits per byte, first evaluation": number(run.evaluation[0].get("bits_per_byte") if held_out else None),
        **{f"Bits per byte, {name}": number(value) for name, value in compressors.items()},
        "Tokens per second, median": number(median_of(run.train, "tokens_per_s"), digits=0),
        "MFU, median": percent(median_of(run.train, "mfu")),
        "Memory, largest": _memory(run.train),
        "Skipped updates": number(sum(row.get("skipped", 0) for row in run.train), digits=0),
        "Training time": _training_time(run),
    }


def _best(run: History) -> Cell:
    rows = [row for row in run.evaluation if math.isfinite(row.get("loss", math.nan))]
    if not rows:
        return UNKNOWN
    best = min(rows, key=lambda row: row["loss"])
    return Number(f"{best['loss']:.4f} at step {best['step']:,.0f}", best["loss"])


def _training_time(run: History) -> Cell:
    if not run.clock:
        return UNKNOWN
    seconds = round(run.clock[1][-1])
    return Number(f"{seconds // 3600:,}:{seconds // 60 % 60:02}:{seconds % 60:02}", seconds)


def _memory(rows: Sequence[Row]) -> Cell:
    held = max((max(row.get("memory_bytes", 0), row.get("memory_peak_bytes", 0)) for row in rows), default=0)
    return Number(f"{held / 2**30:.2f} GiB", held) if held else UNKNOWN

"""Sections that the reports of pretraining and fine-tuning share: state, saved steps, samples, settings, versions.

What each of the two says of its own is in its `__main__`. Free of torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pretrain.report.curves import choice_charts
from pretrain.report.history import ABSENT, History, differing, outcome
from pretrain.report.page import (
    UNKNOWN,
    Block,
    Cell,
    Continued,
    Number,
    Samples,
    Section,
    Style,
    Styled,
    Table,
    number,
    percent,
    shortened,
)
from pretrain.tracking.base import CHOICES, RAW
from pretrain.train.profiling.operators import table_path, what_is_counted

SAMPLED_STEPS = 40  # evaluations whose samples a page has
SAMPLE_ROOM = 1500  # characters of a sample
VALUE_ROOM = 400  # characters of a setting
STEPS_SHOWN = 8  # saved steps that are named one by one
FACTS = ("host", "ranks", "flops_per_token", "parameters", "parameters_learnt", "vocab_size")  # of run.json


def state(run: History) -> Cell:
    """Return how a run stands or ended, and why where there is a reason."""
    state, reason = outcome(run.path, run.facts.get("exit"))
    return f"{state}: {reason}" if reason else state


def saved(run: History, best: int | None) -> dict[str, Cell]:
    """Return rows on the steps whose checkpoints are on disk, and on the best step if there is one."""
    rows: dict[str, Cell] = {"Newest saved step": "none", "Saved steps": UNKNOWN, "Best step": UNKNOWN}
    if best is not None:
        rows["Best step"] = f"{best:,}{'' if best in run.saved else ', not on disk'}"
    if not run.saved:
        return rows
    behind = run.last_step - run.saved[-1]
    newest = f"{run.saved[-1]:,}{f', {behind:,} behind the last logged' if behind > 0 else ''}"
    names = [f"{step:,}" for step in run.saved]
    if len(names) > STEPS_SHOWN:
        names = [*names[:2], f"… ({len(names):,} in all) …", *names[-2:]]
    return {**rows, "Newest saved step": Number(newest, run.saved[-1]), "Saved steps": "; ".join(names)}


def notes(runs: Sequence[History]) -> list[Block]:
    """Return what is not as a reader would take for granted: what was lost, and values that are not finite."""
    said = []
    for run in runs:
        lines = list(dict.fromkeys(run.notes))
        for rows, what in ((run.train, "training"), (run.evaluation, "held-out")):
            odd = [row["step"] for row in rows if not math.isfinite(row.get("loss", 0.0))]
            if odd:
                lines.append(
                    f"{len(odd):,} of {len(rows):,} {what} losses are not finite, the first at step {odd[0]:,.0f}: "
                    "curves have gaps there"
                )
        if not run.evaluation:
            lines.append("nothing held out was measured")
        said += [[run.name, line] for line in lines] if len(runs) > 1 else [[line] for line in lines]
    return [Table(["run", "note"][-len(said[0]) :], said)] if said else []


def choices(runs: Sequence[History]) -> list[Section]:
    """Return how runs answered multiple-choice questions at their evaluations, if any did."""
    keys = dict.fromkeys(key for run in runs for row in run.evaluation for key in row if key.startswith(CHOICES))
    sets = [key.removeprefix(CHOICES) for key in keys if not key.endswith(RAW)]
    if not sets:
        return []
    rows = [row for name in sets for run in runs if (row := _answers(run, name))]
    header = ["set", "run", "by bytes", "best", "by whole choices", "chance", "questions"]
    if len(runs) == 1:
        header, rows = [header[0], *header[2:]], [[row[0], *row[2:]] for row in rows]
    said = "Shares of right answers at the last evaluation: by the likelihood of a byte of a choice, or of all of it."
    return [Section("Multiple choice", [choice_charts(runs, sets), Table(header, rows), said])]


def _answers(run: History, name: str) -> list[Cell]:
    """Return the row of a run on a multiple-choice set; nothing if it was not measured on that."""
    measured = [row for row in run.evaluation if CHOICES + name in row]
    if not measured:
        return []
    about, last = run.facts.get("choices", {}).get(name, {}), measured[-1]
    best = max((row[CHOICES + name] for row in measured if math.isfinite(row[CHOICES + name])), default=None)
    shares = last[CHOICES + name], best, last.get(CHOICES + name + RAW), about.get("chance")
    return [name, run.name, *map(percent, shares), number(about.get("questions"), digits=0)]


def samples(runs: Sequence[History]) -> list[Section]:
    """Return what prompts were continued to over the steps, if any run has samples."""
    steps: dict[int, list[Continued]] = {}
    for run in runs:
        for sample in run.samples:
            name = run.name if len(runs) > 1 else ""
            continued = Continued(name, _cut(sample["prompt"]), _cut(sample["continuation"]))
            steps.setdefault(sample["step"], []).append(continued)
    if not steps:
        return []
    kept = sorted(steps)
    if len(kept) > SAMPLED_STEPS:
        kept = [kept[round(place)] for place in np.linspace(0, len(kept) - 1, SAMPLED_STEPS)]
    said = [f"Shown are {len(kept)} of {len(steps):,} evaluations."] if len(kept) < len(steps) else []
    for each in steps.values():
        each.sort(key=lambda continued: continued.prompt)  # so that runs stand side by side
    return [Section("Samples", [*said, Samples({step: steps[step] for step in kept})])]


def profiles(runs: Sequence[History]) -> list[Section]:
    """Return the costliest operators of the newest profiled steps of each run, on the first rank that has them."""
    blocks: list[Block] = []
    for run in runs:
        newest = max((found.last for found in run.profiles), default=None)
        for found in [each for each in run.profiles if each.last == newest][:1]:
            steps, where = found.table["steps"], table_path(run.path, *found[:3]).parent
            whose = f"{run.name}: {steps}" if len(runs) > 1 else f"{steps}"
            said = f"{whose} steps up to step {found.last:,} on rank {found.rank}; {what_is_counted(found.table)}. In "
            rows: list[list[Cell]] = [
                [
                    Styled(shortened(each["name"], VALUE_ROOM), Style.code),
                    number(each["calls"] / steps, digits=0),
                    number(each["self_ms"] / steps, digits=2),
                    percent(each["share"]),
                ]
                for each in found.table["operators"]
            ]
            blocks += [
                (said, Styled(str(where), Style.code), " are the traces."),
                Table(["operator", "calls a step", "ms a step", "share"], rows),
            ]
    return [Section("Costliest operators", blocks)] if blocks else []


def differences(runs: Sequence[History]) -> list[Section]:
    """Return where the configurations of several runs differ."""
    if len(runs) == 1:
        return []
    missing = [run.name for run in runs if not run.config]
    if missing:
        block: Block = f"Not compared: no config.yaml in {', '.join(missing)}."
    elif settings := differing(runs):
        block = _settings(runs, settings)
    else:
        block = ("Nowhere, apart from ", Styled("run.*", Style.code), ".")
    return [Section("Where the configurations differ", [block])]


def configuration(runs: Sequence[History]) -> Section:
    """Return all settings of the runs."""
    keys = dict.fromkeys(key for run in runs for key in run.config)
    settings = {key: [run.config.get(key, ABSENT) for run in runs] for key in sorted(keys)}
    return Section("Configuration", [_settings(runs, settings) if keys else "No config.yaml."], reference=True)


def machine(runs: Sequence[History]) -> Section:
    """Return where the runs ran, and with which versions."""
    entries = [
        {**{key: run.facts[key] for key in FACTS if key in run.facts}, **run.facts.get("versions", {})} for run in runs
    ]
    keys = dict.fromkeys(key for facts in entries for key in facts)
    rows = [[key, *(_value(facts.get(key, ABSENT)) for facts in entries)] for key in keys]
    table = Table(["entry", *_columns(runs)], rows)
    return Section("Machine and versions", [table if rows else "No run.json."], reference=True)


def _settings(runs: Sequence[History], settings: dict[str, list[object]]) -> Table:
    rows = [[Styled(key, Style.code), *map(_value, values)] for key, values in settings.items()]
    return Table(["key", *_columns(runs)], rows)


def _columns(runs: Sequence[History]) -> list[str]:
    return [run.name for run in runs] if len(runs) > 1 else ["value"]


def _value(value: object) -> Cell:
    return UNKNOWN if value is ABSENT else Styled(shortened(str(value), VALUE_ROOM), Style.code)


def _cut(text: str) -> str:
    return text if len(text) <= SAMPLE_ROOM else f"{text[: SAMPLE_ROOM - 1]}…"

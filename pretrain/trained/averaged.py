"""The mean of the weights of several steps of a run, as a run directory of its own.

Holds the reading by pieces and the files around them: a few pieces are in memory, whatever the model's size.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from pretrain.checkpoint.base import WEIGHT
from pretrain.checkpoint.commit import MANIFEST_FILE, TEMPORARY, commit, step_names, step_number
from pretrain.checkpoint.fragments import FragmentReader, Index, bytes_of, header
from pretrain.checkpoint.load import check_architecture, fragments_of, load_state, saved_step
from pretrain.distributed.world import World
from pretrain.errors import CheckpointError, ResourceError, check
from pretrain.files import fsync_path, hash_file, replace_file, sealed, write_hashed
from pretrain.tokenizer.base import PAIR_FILES
from pretrain.train.run_dir.base import CHECKPOINTS, CONFIG_FILE, TOKENIZER_FILE
from pretrain.train.run_dir.record import RECORD_FILE, check_written_by, read_record

PIECE = 1 << 20  # elements of a tensor that are read at a time: 4 MiB of each step, 16 in float64 while they are added
AHEAD = 2  # pieces that may wait to be hashed
FILE = "fragments-00000-of-00001.safetensors"
OF_STEPS = ("steps", "best_step", "micro_batch", "notes", "ranks", "host", "branch")  # in run.json: not the average's


def average(run: Path, last: int, out: Path, ema: float | None = None) -> str:
    """Write the mean of the weights of the `last` newest steps of a run as a run directory, and say what it is.

    With `ema` the weights of each step count that much less than those of the next one saved: an exponential moving
    average over the saved steps. Sums are float64, the result is fp32 as the weights are. It has no moments: no run
    resumes from it, and `init_from` begins one with it. Whatever moment a crash hits, `out` is there whole or not at
    all. Raises `ConfigError` for what is no run, too few steps and an `out` that exists, `CheckpointError` for damaged
    steps and for steps of different networks, `ResourceError` where the disk is full.
    """
    check(last >= 2, "--last", last, "at least 2 steps")
    check(ema is None or 0 < ema < 1, "--ema", ema, "between 0 and 1: what a step counts beside the next one")
    check(not out.exists(), "--out", out, "is there already; name another directory, or move it away")
    check_written_by("pretrain", run)
    record = read_record(run, "vocab_size", "document_frame")
    names = step_names(run / CHECKPOINTS)
    rule = f"{run} has {len(names)} saved steps; train longer, or keep more of them (checkpoint.keep, .keep_every)"
    check(len(names) >= last, "--last", last, rule)
    numbers = [step_number(Path(name)) for name in names[-last:]]
    steps = [saved_step(run / CHECKPOINTS, World.alone(), number, record.get("steps")) for number in numbers]
    state = _common_state(steps)
    of = f"mean of the weights at steps {', '.join(map(str, numbers))} of {run}"
    said = f"the {of}{f', each counting {ema:g} of the next' if ema else ''}; no moments are in it"
    temporary = out.with_name(f"{TEMPORARY}average-{out.name}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        (temporary / CHECKPOINTS).mkdir(parents=True)
        step = _write_step(temporary / CHECKPOINTS, steps, shares(last, ema), {**state, "averaged": numbers})
        for name in (CONFIG_FILE, TOKENIZER_FILE, *PAIR_FILES):
            if (run / name).is_file():
                replace_file(temporary / name, [(run / name).read_bytes()])
        kept = {key: value for key, value in record.items() if key not in OF_STEPS}
        own = {"name": out.name, "exit": 0, "steps": {step.name: hash_file(step / MANIFEST_FILE)}, "average": said}
        replace_file(temporary / RECORD_FILE, [sealed({**kept, **own})])
        temporary.rename(out)
        fsync_path(out.parent)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise ResourceError(f"--out={out}: not written ({error}); free space there, or name another place") from None
    return f"{out}: {said}; evaluate, sample, export and init_from take it"


def shares(last: int, ema: float | None) -> list[float]:
    """Return what each of so many steps counts, the oldest first; the sum is 1.

    Of an exponential moving average with decay D those are D^age (1 - D) / (1 - D^last), the bias-corrected ones
    (Kingma & Ba 2015, section 3).
    """
    if ema is None:
        return [1 / last] * last
    return [ema**age * (1 - ema) / (1 - ema**last) for age in reversed(range(last))]


def _common_state(steps: Sequence[Path]) -> dict[str, Any]:
    """Return the state of the newest step, less what only its run uses. Raises `CheckpointError` for other networks."""
    states, newest = [load_state(step) for step in steps], load_state(steps[-1])
    wanted = fragments_of(steps[-1]).weight_shapes()
    for step, state in zip(steps, states, strict=True):
        check_architecture(step, wanted, fragments_of(step).weight_shapes())
        theirs, ours = state.get("resume", {}), newest.get("resume", {})
        differing = [key for key in ours if key.startswith(("model.", "tokenizer")) and theirs.get(key) != ours[key]]
        if differing:
            key = differing[0]
            rule = f"{key} was {theirs.get(key)} there and {ours[key]} at {steps[-1].name}; their mean is no model"
            raise CheckpointError(f"{step}: {rule}, average fewer steps")
    return {key: newest[key] for key in ("tokens", "resume", "facts") if key in newest}


def _write_step(directory: Path, steps: Sequence[Path], shares: Sequence[float], state: dict[str, Any]) -> Path:
    """Commit the mean of steps into a directory, under the number of the newest, and return its place."""
    readers = [fragments_of(step) for step in steps]
    shapes = readers[-1].weight_shapes()
    dtypes = {name: readers[-1](name, WEIGHT, 0, 0).dtype for name in shapes}
    temporary, number = directory / f"{TEMPORARY}{steps[-1].name}", step_number(steps[-1])
    temporary.mkdir()
    head = header((f"{WEIGHT}/{name}/0", dtypes[name], [shape.numel()]) for name, shape in shapes.items())
    pieces = (piece for name, shape in shapes.items() for piece in _pieces(readers, shares, name, shape.numel()))
    digest = write_hashed(temporary / FILE, head, pieces, ahead=AHEAD)
    fragments: list[tuple[str, str, list[int], str, int, int]] = [
        (name, WEIGHT, list(shape), str(dtypes[name]).removeprefix("torch."), 0, shape.numel())
        for name, shape in shapes.items()
    ]
    index = Index(file=FILE, size=(temporary / FILE).stat().st_size, sha256=digest, fragments=fragments)
    commit(temporary, number, json.dumps({**state, "step": number}, indent=1).encode(), [index])
    return directory / steps[-1].name


def _pieces(readers: Sequence[FragmentReader], shares: Sequence[float], name: str, numel: int) -> Iterator[memoryview]:
    """Yield the bytes of the mean of a tensor, piece by piece; what is no real number is that of the newest step."""
    for start in range(0, numel, PIECE):
        length = min(PIECE, numel - start)
        newest = readers[-1](name, WEIGHT, start, length)
        if not newest.is_floating_point():
            yield bytes_of(newest)
            continue
        total = torch.zeros(length, dtype=torch.float64)
        for read, share in zip(readers, shares, strict=True):
            total.add_(read(name, WEIGHT, start, length).double(), alpha=share)
        yield bytes_of(total.to(newest.dtype))

"""The start of a branch: the step of its origin is compared, and becomes its own first step.

Holds the order of these; after it the run resumes from its own directory like any other.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from pretrain.checkpoint.commit import MANIFEST_FILE
from pretrain.checkpoint.copying import Copied, copy_step
from pretrain.checkpoint.load import Shapes, check_architecture, check_goes_on, fragments_of, load_state, saved_step
from pretrain.errors import CheckpointError, ResourceError, check
from pretrain.files import hash_file
from pretrain.tracking.base import Mark
from pretrain.train.branches.base import BranchData, Origin, Recorded, check_differences
from pretrain.train.detours.base import Detour, write_detours
from pretrain.train.resuming import Fingerprints, SavedRun
from pretrain.train.run_dir.base import CHECKPOINTS
from pretrain.train.run_dir.record import read_record
from pretrain.train.session import Session

INHERITED = ("init_from", "generation")  # entries of run.json: what the origin's weights and its rules of texts are of

log = logging.getLogger(__name__)


def begin_branch(
    origin: Origin,
    session: Session,
    shapes: Shapes,
    fingerprints: Fingerprints,
    unsaid: Fingerprints,
    detours: Sequence[Detour],
) -> dict[str, Any]:
    """Make the origin's step the first one of a run that has none, and return what run.json says of where it is from.

    A collective: ranks share the verification, rank 0 copies. `shapes`, `fingerprints` and `unsaid` are those of
    `resume`, which comes next, `detours` what the branch inherits. Nothing is written before the step is found to fit.
    Raises `CheckpointError` for a damaged step and for one of another network, `DataError` for other data,
    `ConfigError` for a run that ends before it, `ResourceError` where the disk is full.
    """
    cfg, world, run = session.cfg, session.world, session.directory
    directory = cfg.run.directory / CHECKPOINTS
    theirs = read_record(origin.run)
    step = saved_step(origin.run / CHECKPOINTS, world, origin.step, theirs.get("steps"))
    saved = load_state(step, SavedRun)
    check_goes_on(step, saved)
    trained = {key: unsaid[key] for key in fingerprints if key in unsaid} | saved.get("resume", {})
    check_differences(origin, trained, fingerprints, cfg.branch)
    rule = f"the branch begins at step {saved['step']} of {origin.run}; raise it"
    check(saved["step"] < cfg.train.steps, "train.steps", cfg.train.steps, rule)
    check_architecture(step, shapes, fragments_of(step).weight_shapes())
    known = Recorded(run=origin.name, step=saved["step"], data=cfg.branch.data.name)
    problem: tuple[bool, str] | None = None
    if run:
        try:
            write_detours(run.path, detours)
            copied = copy_step(step, directory, _state(saved, known, fingerprints))
        except (OSError, CheckpointError) as error:
            problem = isinstance(error, CheckpointError), str(error)
        else:
            _say(copied, origin)
            run.keep_committed([copied.step.name], **{copied.step.name: hash_file(copied.step / MANIFEST_FILE)})
    [problem, *_] = world.gather(problem)
    if problem:
        of_step, words = problem
        raise CheckpointError(words) if of_step else ResourceError(f"{directory}: {words}; free space, and start again")
    return {"branch": known, **{key: theirs[key] for key in INHERITED if key in theirs}}


def _state(saved: Mapping[str, Any], known: Recorded, fingerprints: Fingerprints) -> dict[str, Any]:
    """Return the state of the branch's first step: its own records begin here, and its evaluations are its own.

    An evaluation of the origin counts if it was that of this step and of the same held-out text.
    """
    compared = known["data"] == BranchData["continue"].name
    own = {key: value for key in ("best", "best_evaluation") if (value := saved.get(key))}
    kept = {key: value if compared and value[0] == saved["step"] else None for key, value in own.items()}
    facts = {**saved.get("facts", {}), "branch": known}
    nothing = Mark(lines=0, sha256=hashlib.sha256().hexdigest())
    return {**saved, **kept, "stalled": 0, "resume": fingerprints, "facts": facts, "metrics": nothing}


def _say(copied: Copied, origin: Origin) -> None:
    log.info("branching off %s at %s", origin.run, copied.step.name)
    if copied.refusal:
        rule = "copied %s bytes of it: no hard links from there to here (%s), and the space is taken twice"
        log.warning(f"%s: {rule}", copied.step, f"{copied.copied:,}", copied.refusal)

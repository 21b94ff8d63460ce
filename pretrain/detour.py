"""`python -m pretrain.detour RUN --rewind STEPS --skip FIRST:END`: take a run back, and around a range of its data.

Holds the command; what it does to the run is in `train.detours`, as for the detours that a run takes by itself.
"""

from __future__ import annotations

from pretrain.commands import start_command

if __name__ == "__main__":
    start_command()  # before the imports below

import argparse
import re
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from pretrain.commands import command
from pretrain.errors import ConfigError, ResourceError, check
from pretrain.settings.options import CommandParser

_RANGE = re.compile(r"(\d{1,12}):(\d{1,12})")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return command(parser(), take, arguments)


def parser() -> CommandParser:
    """Return the options of the command."""
    description = (
        "Take a run that is not under way back to a saved step, and let it skip a range of its data from there on. "
        "Later steps are put aside, not deleted. The command that started the run goes on with it."
    )
    parser = CommandParser(
        prog="python -m pretrain.detour",
        description=description,
        example="python -m pretrain.detour runs/demo --rewind 400 --skip 9700:9900",
    )
    parser.add_argument("run", metavar="RUN", help="run directory of pretraining, e.g. runs/demo")
    back = "optimizer steps to go back at least, from the last one that the run logged or saved, to a saved step"
    parser.add_argument("--rewind", type=int, required=True, metavar="STEPS", help=back)
    data = "data steps to skip, END not: batches in their order, from 0; as optimizer steps until some are skipped"
    parser.add_argument("--skip", required=True, metavar="FIRST:END", help=data)
    why = "what is kept with the detour in detours.json"
    parser.add_argument("--reason", default="by hand", metavar="TEXT", help=why)
    return parser


def take(options: argparse.Namespace) -> str:
    """Take the detour of a command line; return what is to be said. Raises `ConfigError` for one that cannot be."""
    from pretrain.train.detours.base import Detour
    from pretrain.train.detours.rewinding import go_back, last_step, saved_steps, step_to_go_back_to
    from pretrain.train.run_dir.base import RunConfig, RunDirectory
    from pretrain.train.run_dir.record import check_written_by, read_record

    run, rewind, found = Path(options.run), options.rewind, _RANGE.fullmatch(options.skip)
    check(rewind >= 0, "--rewind", rewind, "0 or more optimizer steps")
    if not found:
        raise ConfigError(f"--skip {options.skip}: must be two data steps, FIRST:END, such as 9700:9900")
    read_record(run)
    check_written_by("pretrain", run)
    with closing(RunDirectory.claim(RunConfig(name=run.resolve().name, root=str(run.resolve().parent)))) as directory:
        saved, stands = saved_steps(run), last_step(run)
        step = step_to_go_back_to(saved, stands - rewind, stands - rewind)
        if step is None or not saved:
            rule = f"saved are {', '.join(map(str, saved)) or 'none'}; go back less, or all {stands} steps"
            raise ConfigError(f"--rewind {rewind}: {run} has no saved step up to {stands} - {rewind}; {rule}")
        directory.begin()
        first, end = int(found[1]), int(found[2])
        try:
            go_back(directory, Detour(step=step, first=first, end=end, reason=options.reason, automatic=False))
        except OSError as error:
            raise ResourceError(f"{run}: the detour cannot be recorded ({error}); free space there") from None
    goes_on = f"{run} goes on from step {step} and skips data steps {first} to {end - 1}"
    return f"{goes_on}; the command that started it resumes"


if __name__ == "__main__":
    sys.exit(main())

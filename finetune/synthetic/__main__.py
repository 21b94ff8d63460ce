"""`python -m finetune.synthetic [FOLDER]`: write the synthetic tasks as JSON lines.

Holds the command line; the tasks are made in `packages` and `signatures`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from finetune.synthetic.library import source_files
from finetune.synthetic.packages import Example, examples
from finetune.synthetic.signatures import Question, questions
from pretrain.errors import ConfigError, HeadwaterError


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m finetune.synthetic",
        description="Make tasks by script from the source code of Python's own standard library.",
    )
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path("data/synthetic"), help="where to write (default %(default)s)"
    )
    folder: Path = parser.parse_args(arguments).folder
    try:
        files = list(source_files())
        for task, sets in (("packages", examples(files)), ("signatures", questions(files))):
            for split, records in zip(("train", "validation"), sets, strict=True):
                write(folder / task / f"{split}.jsonl", records)
    except HeadwaterError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def write(file: Path, records: Sequence[Example | Question]) -> None:
    """Write records as JSON lines, and say so. Raises `ConfigError` where that cannot be."""
    lines = [json.dumps(record.record(), ensure_ascii=False) + "\n" for record in records]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(lines), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written ({error}); name another folder") from None
    print(f"{file}: {len(lines):,} records")


if __name__ == "__main__":
    sys.exit(main())

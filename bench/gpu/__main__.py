"""Everything that a day with a GPU should answer, in one command of at most nine minutes; see `gpu.md` beside.

    python -m bench.gpu                      # on one H100 or H200: results in runs/gpu
    python -m bench.gpu --dry-run            # every part on small shapes, on a CPU: whether the script itself works
    python -m bench.gpu --parts machine grid --budget 60

Holds the order of the parts and the command line; each is a process of its own (`parts`) with a file of its own.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from bench.gpu.parts import Outcome, Part, run_parts
from bench.gpu.table import as_markdown

BUDGET_S = 530.0  # of all parts together: nine minutes, less what the start and the end take
PRODUCT = (
    "hydra",
    "omegaconf",
    "yaml",
    "numpy",
    "pyarrow",
    "tokenizers",
    "safetensors",
    "accelerate",
    "huggingface_hub",
)
TRAINING = (*PRODUCT, "transformers")
PARTS = (  # the most valuable first
    Part(name="machine", least_s=10, most_s=25),
    Part(name="tests", least_s=40, most_s=130, needs=(*PRODUCT, "pytest", "pytest_timeout", "rich")),
    Part(name="gpt2_124m", least_s=40, most_s=85, needs=TRAINING),
    Part(name="llama_8b_2_blocks", least_s=30, most_s=70, needs=TRAINING),
    Part(name="bert_base", least_s=30, most_s=70, needs=TRAINING),
    Part(name="modernbert_base", least_s=30, most_s=95, needs=TRAINING),
    Part(name="llama_1b", least_s=30, most_s=95, needs=TRAINING),
    Part(name="grid", least_s=20, most_s=45),
)


def main(words: Sequence[str] | None = None) -> None:
    names = [part.name for part in PARTS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--parts", nargs="+", choices=names, default=names, metavar="PART", help=f"of {', '.join(names)}"
    )
    parser.add_argument("--budget", type=float, default=BUDGET_S, help="seconds of all parts together; %(default)s")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder of results.json and results.md")
    parser.add_argument("--dry-run", action="store_true", help="small shapes; also without this, where there is no GPU")
    parser.add_argument("--part", choices=names, help=argparse.SUPPRESS)  # in the process of a part
    args = parser.parse_args(words)
    if args.part:
        _run_here(args.part, dry=args.dry_run)
        return
    dry = args.dry_run or not _has_gpu()
    args.out.mkdir(parents=True, exist_ok=True)
    chosen = [part for part in PARTS if part.name in args.parts]
    if dry:  # a CPU is slower where GPUs wait for their compilers, and there are no budgets to prove
        chosen = [replace(part, most_s=max(part.most_s, args.budget)) for part in chosen]
    began = time.strftime("%Y-%m-%d %H:%M:%S")

    def keep(outcomes: list[Outcome]) -> None:
        """Write what is known so far, so that whatever ends this process leaves it."""
        found = {"began": began, "dry_run": dry, "budget_s": args.budget, "parts": [asdict(each) for each in outcomes]}
        (args.out / "results.json").write_text(json.dumps(found, indent=1))
        (args.out / "results.md").write_text(as_markdown(found))
        newest = outcomes[-1]
        print(f"{newest.name:<20}{newest.state:<20}{newest.seconds:>6.0f} s  {newest.reason}", flush=True)

    run_parts(chosen, args.budget, ["--dry-run"] if dry else [], keep)
    print((args.out / "results.md").read_text())


def _run_here(name: str, *, dry: bool) -> None:
    """Measure a part in this process; it imports what it needs itself."""
    if name == "machine":
        from bench.gpu import machine

        machine.measure(dry=dry)
    elif name == "tests":
        from bench.gpu import suite

        suite.measure(dry=dry)
    elif name == "grid":
        from bench.gpu import grid

        grid.measure(dry=dry)
    else:
        from bench.gpu import training

        training.measure(name, dry=dry)


def _has_gpu() -> bool:
    from importlib.util import find_spec

    if find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    main()

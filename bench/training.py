"""Training speed against the Hugging Face Trainer and other peers: same shape, same tokens, one step each in turn.

Holds the claim and its table; contestants are in `contestants`, measuring is in `rounds`.

    python -m bench.training
    python -m bench.training headwater headwater-joined trainer plain --rounds 30
    python -m bench.training headwater-gelu-compiled trainer-gelu-compiled
    python -m bench.training headwater headwater-guarded    # what guard=sigma costs

Needs transformers (`pip install transformers`). litgpt wants another huggingface-hub than transformers 5, so it takes
an environment of its own: `python -m venv V && V/bin/pip install litgpt`, then `--litgpt-python V/bin/python`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from bench.contestants import Arena, Contestant, Workload
from bench.rounds import interleaved, machine, medians, paired_ratio
from bench.same_function import check_same_function

WORKLOAD = Workload(layers=6, width=384, heads=6)  # 17.0M parameters
WARM_UP = 3  # steps of each contestant that do not count: memory is allocated, threads start, graphs are compiled
DEFAULT = ["headwater", "trainer", "headwater-gelu", "trainer-gelu"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contestants", nargs="*", default=DEFAULT, help=f"default: {' '.join(DEFAULT)}")
    parser.add_argument("--rounds", type=int, default=20, help="steps of each contestant that count")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--litgpt-python", default=sys.executable)
    args = parser.parse_args()
    named = {name: Contestant.named(name) for name in args.contestants}
    with tempfile.TemporaryDirectory() as folder:
        arena = Arena(work=Path(folder), workload=WORKLOAD, threads=args.threads, litgpt_python=args.litgpt_python)
        arena.prepare()
        check_same_function(WORKLOAD, arena.tokens)
        steps = WARM_UP + args.rounds + 1  # one more than is measured: what follows a last step is not training
        runners = {name: arena.enter(one, name, steps) for name, one in named.items()}
        seconds = interleaved(runners, WARM_UP, args.rounds)
    middle = medians(seconds)
    print(f"{WORKLOAD}, {args.threads} threads, medians of {args.rounds} interleaved steps")
    print(machine("torch", "transformers"))
    print(f"{'':<26}{'tokens/s':>10}{'slowest':>10}{'fastest':>10}   Headwater's speed over this one's")
    for name, one in named.items():
        speeds = [WORKLOAD.step_tokens / taken for taken in (middle[name], max(seconds[name]), min(seconds[name]))]
        ratio = f"{paired_ratio(seconds[name], seconds[one.counterpart]):.2f}" if one.counterpart in seconds else ""
        print(f"{name:<26}" + "".join(f"{speed:>10,.0f}" for speed in speeds) + f"   {ratio}")


if __name__ == "__main__":
    main()

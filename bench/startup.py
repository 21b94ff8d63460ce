"""Seconds from the command to its first optimizer step, on a corpus that is prepared: a 10M-parameter GPT-2.

Holds the claim and its table; contestants are in `contestants`, measuring is in `rounds`.

    python -m bench.startup
    python -m bench.startup headwater trainer --rounds 9

Headwater is timed until metrics.jsonl holds the line of step 1, peers until they print it. Needs transformers.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from bench.contestants import Arena, Contestant, Workload
from bench.rounds import machine, medians

WORKLOAD = Workload(layers=7, width=256, heads=4)  # 9.8M parameters
DEFAULT = ["headwater", "trainer", "plain"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contestants", nargs="*", default=DEFAULT, help=f"default: {' '.join(DEFAULT)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--litgpt-python", default=sys.executable)
    args = parser.parse_args()
    named = {name: Contestant.named(name) for name in args.contestants}
    seconds: dict[str, list[float]] = {name: [] for name in named}
    with tempfile.TemporaryDirectory() as folder:
        arena = Arena(work=Path(folder), workload=WORKLOAD, threads=args.threads, litgpt_python=args.litgpt_python)
        arena.prepare()
        for number in range(-1, args.rounds):  # the round before the first fills the system's file cache
            for name, one in named.items():
                with arena.enter(one, f"{name}-{number}", steps=2) as runner:
                    taken = runner.step()
                if number >= 0:
                    seconds[name].append(taken)
    middle = medians(seconds)
    print(f"{WORKLOAD}, {args.threads} threads, medians of {args.rounds} interleaved starts")
    print(machine("torch", "transformers"))
    print(f"{'':<26}{'seconds':>10}{'fastest':>10}{'slowest':>10}")
    for name, values in seconds.items():
        print(f"{name:<26}{middle[name]:>10.2f}{min(values):>10.2f}{max(values):>10.2f}")


if __name__ == "__main__":
    main()

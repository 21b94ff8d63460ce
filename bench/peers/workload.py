"""What every peer trains: shape and data from the command line, one JSON line a step on standard output.

Holds no model and no training; the lines have the keys of Headwater's metrics.jsonl.
"""

import argparse
import json
import time

import numpy as np


def arguments() -> argparse.Namespace:
    """Parse the workload: a GPT-2 of some shape on a flat file of uint16 token ids."""
    parser = argparse.ArgumentParser()
    parser.add_argument("tokens", help="file of uint16 token ids, documents end to end")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--layers", type=int, required=True)
    parser.add_argument("--width", type=int, required=True)
    parser.add_argument("--heads", type=int, required=True)
    parser.add_argument("--seq-len", type=int, required=True)
    parser.add_argument("--vocab", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--activation", required=True)
    parser.add_argument("--compile", action="store_true")
    return parser.parse_args()


def blocks(args: argparse.Namespace) -> np.ndarray:
    """Return the tokens of the whole run as (steps * batch, seq_len + 1) ids in the order of the file."""
    stride = args.seq_len
    ids = np.memmap(args.tokens, dtype=np.uint16, mode="r")
    starts = np.arange(args.steps * args.batch) * stride % (len(ids) - stride - 1)
    return ids[starts[:, None] + np.arange(stride + 1)].astype(np.int64)


class Clock:
    """Prints the number, loss and duration of each step as it ends; the first step has no duration."""

    def __init__(self) -> None:
        self.step = 0
        self.since: float | None = None

    def tick(self, loss: float | None) -> None:
        """Mark the end of a step; `loss` is in nats per token, None where the peer does not tell it."""
        now = time.perf_counter()
        self.step += 1
        seconds = None if self.since is None else now - self.since
        print(json.dumps({"step": self.step, "loss": loss, "step_s": seconds}), flush=True)
        self.since = now

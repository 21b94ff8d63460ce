"""`python -m launch.slurm.node --nproc N --logs DIR -- COMMAND...`: this node's ranks in a step of Slurm.

Holds what Slurm says about the node; job scripts run it as one task on each node, with MASTER_ADDR and MASTER_PORT set.
"""

from __future__ import annotations

from pretrain.commands import start_command

if __name__ == "__main__":
    start_command()  # before the imports below, which take seconds

import argparse
import os
import signal
import sys
import threading
import time
from pathlib import Path

from launch.ranks import PEER_LOST, STOPPED, Node, run_ranks
from pretrain.commands import STOP_SIGNALS


def main() -> None:
    """Run the ranks of this node and exit with their common code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nproc", type=int, required=True, help="ranks on this node")
    parser.add_argument("--logs", type=Path, required=True, help="directory of the logs of ranks")
    parser.add_argument("command", nargs="+")
    args = parser.parse_args()
    for number in STOP_SIGNALS:  # before and after the ranks, too: srun sends TERM as soon as another node has ended
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_stop_without_parent, daemon=True).start()
    node = Node(
        number=int(os.environ["SLURM_NODEID"]),
        of=int(os.environ["SLURM_STEP_NUM_NODES"]),
        address=os.environ["MASTER_ADDR"],
        port=int(os.environ["MASTER_PORT"]),
    )
    sys.exit(ordered(run_ranks(args.command, count=args.nproc, node=node, logs=args.logs)))


def ordered(code: int) -> int:
    """Return a node's exit code for that of its ranks, ordered so that a cause is above its consequences.

    srun ends with the highest code of its nodes. A stop stays 85; a lost peer, which is how other nodes see a failed
    rank, is 90; a failure N is 100 + N. The job script maps them back.
    """
    if code in (0, STOPPED):
        return code
    return 90 if code == PEER_LOST else min(100 + code, 127)


def _stop_without_parent() -> None:
    """Stop the ranks once Slurm's daemon of the step is gone: nothing else would end them."""
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()

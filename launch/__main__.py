"""`python -m launch MODE SETTINGS -- PROGRAM SETTINGS`: start ranks on this machine or on a cluster.

    python -m launch local nproc=2 -- pretrain experiment=demo
    python -m launch local -- finetune task=qa ... 'optim.lr=1e-5,3e-5' 'seed=range(3)'
    python -m launch slurm cluster=NAME nodes=4 -- pretrain experiment=llama_1b
    python -m launch slurm cluster=NAME parts=16 -- pretrain.prepare data=jsonl ...
    python -m launch doctor cluster=NAME nodes=4 -- pretrain experiment=llama_1b

Settings with several values make a sweep. `--help` behind MODE or PROGRAM lists the settings there.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

from launch.jobs import PREPARE, PROGRAMS, jobs_of, prepared_by
from launch.local import LOCAL, LocalConfig, examine_here, run_local
from launch.slurm.submit import SLURM, SlurmConfig, examine_nodes, submit_preparation, submit_runs
from launch.sweep import expand
from pretrain.compose import hydra_command


def local(words: Sequence[str], program: Sequence[str]) -> None:
    """Run on this machine."""

    def run(cfg: LocalConfig) -> None:
        sys.exit(run_local(cfg, jobs_of(program)))

    sys.argv = ["launch local", *words]
    hydra_command(run, LOCAL)


def slurm(words: Sequence[str], program: Sequence[str]) -> None:
    """Submit to Slurm."""

    def submit(cfg: SlurmConfig) -> None:
        if program[:1] == [PREPARE]:
            submit_preparation(cfg, program[1:], prepared_by(program[1:]) / "slurm")
        else:
            submit_runs(cfg, jobs_of(program))

    sys.argv = ["launch slurm", *words]
    hydra_command(submit, SLURM)


def doctor(words: Sequence[str], program: Sequence[str]) -> None:
    """Look at the nodes of a cluster before an allocation is spent, or without `cluster=` at this machine.

    Of a sweep, whose runs ask the same of both, the first.
    """

    def here(cfg: LocalConfig) -> None:
        sys.exit(examine_here(cfg, [*program[:1], *expand(program[1:])[0].overrides]))

    def there(cfg: SlurmConfig) -> None:
        sys.exit(examine_nodes(cfg, jobs_of(program)[0]))

    on_cluster = any(word.startswith("cluster=") for word in words)
    sys.argv = ["launch doctor", *words]
    hydra_command(there if on_cluster else here, SLURM if on_cluster else LOCAL)


MODES = {"local": local, "slurm": slurm, "doctor": doctor}


def main() -> None:
    """Find the mode and split the words at `--`."""
    words = sys.argv[1:]
    at = words.index("--") if "--" in words else len(words)
    mode, *own = words[:at] or [""]
    if mode not in MODES:
        print(__doc__, file=sys.stderr if mode not in ("-h", "--help") else sys.stdout)
        sys.exit(0 if mode in ("-h", "--help") else 2)
    if strays := [word for word in own if word in (*PROGRAMS, PREPARE)]:
        print(f"{strays[0]}: put -- before the program", file=sys.stderr)
        sys.exit(2)
    try:
        MODES[mode](own, words[at + 1 :])
    except KeyboardInterrupt:  # whatever ran here has been ended
        sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main()

"""`python -m launch MODE SETTINGS -- PROGRAM SETTINGS`: start ranks on this machine or on a cluster.

    python -m launch local nproc=2 -- pretrain experiment=demo
    python -m launch local -- finetune task=qa ... 'optim.lr=1e-5,3e-5' 'seed=range(3)'
    python -m launch slurm cluster=NAME nodes=4 -- pretrain experiment=llama_1b
    python -m launch slurm cluster=NAME parts=16 -- pretrain.prepare data=jsonl ...
    python -m launch doctor cluster=NAME nodes=4 -- pretrain experiment=llama_1b

A setting with several values makes a sweep. `--help` after MODE or PROGRAM lists the settings of either.
"""

from __future__ import annotations

from pretrain.commands import start_command

if __name__ == "__main__":
    start_command()  # before the imports below

import sys

from pretrain.errors import ConfigError
from pretrain.errors.nearest import nearest
from pretrain.settings.options import version_text

MODES = ("local", "slurm", "doctor")


def main() -> None:
    """Split the words at `--` and run the mode."""
    words = sys.argv[1:]
    at = words.index("--") if "--" in words else len(words)
    mode, *settings = words[:at] or [""]
    if mode in MODES:
        from launch.modes import run_mode  # after the words are accepted: it imports torch

        run_mode(mode, settings, words[at + 1 :])
    if mode in ("-h", "--help", "--version"):
        print(version_text() if mode == "--version" else __doc__)
        sys.exit()
    refusal = f"{mode}: no such mode{nearest(mode, MODES)} (modes: {', '.join(MODES)}; --help shows their use)"
    print(refusal if mode else __doc__, file=sys.stderr)
    sys.exit(ConfigError.exit_code)


if __name__ == "__main__":
    main()

"""Where and how jobs run: ranks on this machine, jobs on Slurm, sweeps of both, and checks before they start."""

import sys

if sys.argv[:1] == ["-m"]:  # Python looks for the module to run
    from pretrain.settings.modules import check_is_command

    check_is_command()

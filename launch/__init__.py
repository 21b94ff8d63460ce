"""Where and how jobs run: ranks on this machine, jobs on Slurm, sweeps of both, and checks before they start."""

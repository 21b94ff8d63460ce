"""Where and how jobs run. Torchrun works today; Slurm, sweeps and checks of a cluster arrive here."""

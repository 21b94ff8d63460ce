"""Slurm: job scripts, their submission and what runs on the nodes."""

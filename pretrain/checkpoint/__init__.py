"""Checkpoints: what is saved, how it reaches the disk, and how it is read back."""

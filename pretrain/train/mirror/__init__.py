"""Copies of a run's checkpoints in another store, for the day when its own disk is gone."""

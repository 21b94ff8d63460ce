"""From a checkpoint to a task. Heads and tasks arrive here; this package imports `pretrain`, never the reverse."""

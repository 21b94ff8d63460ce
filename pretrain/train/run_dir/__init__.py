"""The run directory: what a run writes there of itself, and what is read of it again."""

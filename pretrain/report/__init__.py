"""The report on a run, or on several runs compared."""

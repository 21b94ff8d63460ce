"""What a run will need, looked at before an allocation is spent: `python -m launch.doctor PROGRAM overrides...`."""

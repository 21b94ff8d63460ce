"""What a run will need, examined before an allocation is spent: `python -m launch.doctor PROGRAM SETTINGS`."""

"""What a report page says of the answers of each task. Sections arrive here as plain values, not as tasks."""

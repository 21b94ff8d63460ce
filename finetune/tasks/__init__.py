"""Tasks: what is predicted of a text. A folder holds a task's dataclass, labels, metrics, decoding and report."""

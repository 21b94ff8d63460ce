"""Tasks: what is asked of a text, how answers are encoded, learnt, decoded and measured. One file a task."""

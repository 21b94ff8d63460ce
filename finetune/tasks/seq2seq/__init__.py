"""Sequence to sequence: translation, summaries, instruction tuning; the model writes its answer, token after token."""

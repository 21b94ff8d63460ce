"""Where the numbers of a run go: metrics.jsonl, the console, W&B, TensorBoard."""

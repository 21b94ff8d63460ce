"""What of a model learns when it is fine-tuned: a file a way."""

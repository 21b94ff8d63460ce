"""Question answering by a span of the text."""

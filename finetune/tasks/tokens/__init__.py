"""Tagging of words, such as named entities."""

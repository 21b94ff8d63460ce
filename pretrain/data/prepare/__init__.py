"""Preparing: from text to a corpus on disk."""

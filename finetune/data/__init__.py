"""Labelled data: from files to batches."""

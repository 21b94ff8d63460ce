"""Architectures, built from one set of blocks."""

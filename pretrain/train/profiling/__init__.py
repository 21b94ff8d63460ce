"""Profiling a few steps of a run."""

"""Runs that branch off others: how a branch is named, what it may change, and how it begins."""

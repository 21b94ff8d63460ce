"""Corpora: reading sources, preparing shards, ordering, packing and loading batches."""

"""Objectives: what a model is trained to predict from a batch, one file each."""

"""Ranks: how they meet, and what they tell each other."""

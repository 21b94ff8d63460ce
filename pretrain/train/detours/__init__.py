"""What a run does about a loss that stays high: it goes back, and around the data that it met there."""

"""What is learnt from a batch."""

"""From raw text to a pretrained checkpoint."""

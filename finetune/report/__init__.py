"""The page that a fine-tuning run leaves behind."""

"""Generation: texts of many prompts at once, token after token, by cached keys and values."""

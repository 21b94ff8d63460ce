"""A trained model, opened to be used: found, read, measured, continued."""

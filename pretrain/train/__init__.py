"""Training: the loop and everything around a run. No model, engine or data format lives here."""

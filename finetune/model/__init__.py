"""Models for fine-tuning: heads, losses, and which parameters are trained, one module a method."""

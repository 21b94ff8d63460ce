"""How a step runs on the hardware."""

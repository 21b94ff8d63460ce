"""Guards: which gradients may move the weights."""

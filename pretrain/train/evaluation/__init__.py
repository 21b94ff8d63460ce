"""What is measured while a model trains, beside its loss: held-out text, questions, samples."""

"""Ways in which the models of tasks answer, one module a way: by a head of the task, or by writing."""

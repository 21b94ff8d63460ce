"""Tasks made by script from the source code of Python's own standard library, so that fine-tuning can be tried at once.

Holds nothing but the name: nobody labelled these tasks, and what is reached on them says nothing of other tasks.
"""

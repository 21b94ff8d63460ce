"""Hugging Face's formats: families of models, weights, directories that `transformers` loads, downloads.

Holds nothing itself; importing it registers the families.
"""

import pretrain.hub.families  # noqa: F401

"""Hugging Face's formats: families of models, weights, directories that `transformers` loads, downloads.

Holds the discovery alone: every module here is imported, so that adding a file adds a family.
"""

import sys

from pretrain.registry import discover

discover(sys.modules[__name__])

"""The families of models, one file each: where their tensors lie in ours, their configuration both ways, their heads.

Holds the discovery alone: every module here is imported, so that adding a file adds a family.
"""

import sys

from pretrain.registry import discover

discover(sys.modules[__name__])

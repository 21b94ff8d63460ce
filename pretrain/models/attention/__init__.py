"""Attention backends, one file per choice of the config group `attention`.

Holds no backend: each module registers its own dataclass, whose `build` returns the `Attend` callable.
"""

import sys

from pretrain.registry import discover

discover(sys.modules[__name__])

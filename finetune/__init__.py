"""From a checkpoint to a task: what `python -m finetune` and its other commands do, as functions.

    import finetune

    cfg = finetune.configure("task=classification", "init_from=runs/base", "task.train=a.csv", "task.validation=b.csv")
    model = finetune.load(finetune.finetune(cfg))
    model.predict(["a text"])

Holds names only. Each is imported when it is first used: importing this package takes milliseconds. It imports
`pretrain`, never the reverse.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING

if sys.argv[:1] == ["-m"]:  # Python looks for the module to run
    from pretrain.settings.modules import check_is_command

    check_is_command()

__all__ = ["FineTunedModel", "FinetuneConfig", "configure", "finetune", "load"]

if TYPE_CHECKING:
    from finetune.config import FinetuneConfig, configure
    from finetune.run import finetune
    from finetune.trained import FineTunedModel, load
else:
    _MODULES = {
        "FineTunedModel": "finetune.trained",
        "FinetuneConfig": "finetune.config",
        "configure": "finetune.config",
        "finetune": "finetune.run",
        "load": "finetune.trained",
    }

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_MODULES[name]), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})

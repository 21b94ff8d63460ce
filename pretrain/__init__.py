"""From raw text to a pretrained checkpoint: what `python -m pretrain` and its other commands do, as functions.

    import pretrain

    cfg = pretrain.configure("data=text", "data.sources.text.paths=book.txt", "model=decoder", "train.steps=200")
    model = pretrain.load(pretrain.pretrain(cfg))
    model.generate("Once upon a time")

Holds names only. Each is imported when it is first used: importing this package takes milliseconds.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING

if sys.argv[:1] == ["-m"]:  # Python looks for the module to run
    from pretrain.settings.modules import check_is_command

    check_is_command()

__all__ = [
    "HeadwaterError",
    "LanguageModel",
    "PretrainConfig",
    "configure",
    "history",
    "load",
    "prepare_corpora",
    "pretrain",
    "runs",
    "write_report",
]

if TYPE_CHECKING:
    from pretrain.compose import configure
    from pretrain.config import PretrainConfig
    from pretrain.errors import HeadwaterError
    from pretrain.report.history import history
    from pretrain.report.listing import runs
    from pretrain.report.run_page import write_report
    from pretrain.run import prepare_corpora, pretrain
    from pretrain.trained.model import LanguageModel, load
else:
    _MODULES = {
        "HeadwaterError": "pretrain.errors",
        "LanguageModel": "pretrain.trained.model",
        "PretrainConfig": "pretrain.config",
        "configure": "pretrain.compose",
        "history": "pretrain.report.history",
        "load": "pretrain.trained.model",
        "prepare_corpora": "pretrain.run",
        "pretrain": "pretrain.run",
        "runs": "pretrain.report.listing",
        "write_report": "pretrain.report.run_page",
    }

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_MODULES[name]), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})

"""`python -m finetune`: fine-tune a model as the configuration says.

Holds nothing but the door; `finetune.run` builds and trains.
"""

import sys

from finetune.config import FinetuneConfig
from finetune.entry import FINETUNE
from finetune.seeds import fine_tune_each
from pretrain.compose import hydra_command


def main(cfg: FinetuneConfig) -> None:
    """Fine-tune, once or with several seeds."""
    if cfg.seeds:
        fine_tune_each(cfg, sys.argv[1:])
        return
    from finetune.run import finetune  # after the configuration is accepted: it imports the engines

    finetune(cfg)


if __name__ == "__main__":
    hydra_command(main, FINETUNE)

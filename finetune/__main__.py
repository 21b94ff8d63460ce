"""`python -m finetune`: fine-tune a model as the configuration says.

Holds nothing but the door; `finetune.run` builds and trains.
"""

from finetune.config import FinetuneConfig
from finetune.entry import FINETUNE
from pretrain.entry import launch


def main(cfg: FinetuneConfig) -> None:
    """Fine-tune."""
    from finetune.run import finetune  # after the configuration is accepted: it imports the engines

    finetune(cfg)


if __name__ == "__main__":
    launch(main, FINETUNE)

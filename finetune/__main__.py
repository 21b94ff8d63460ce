"""`python -m finetune`: fine-tune a model as configured.

Holds the command only; `finetune.run` builds and trains.
"""

from pretrain.commands import start_command

if __name__ == "__main__":
    start_command()  # before the imports below, which take seconds

from finetune.config import FINETUNE, FinetuneConfig
from pretrain.compose import hydra_command


def main(cfg: FinetuneConfig) -> None:
    """Fine-tune."""
    from finetune.run import finetune  # after the configuration is accepted: it imports the engines

    finetune(cfg)


if __name__ == "__main__":
    hydra_command(main, FINETUNE)

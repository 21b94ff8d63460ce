"""`python -m pretrain`: pretrain a model as configured.

Holds the command only; `pretrain.run` builds and trains.
"""

from pretrain.commands import start_command

if __name__ == "__main__":
    start_command()  # before the imports below, which take seconds

from pretrain.compose import hydra_command
from pretrain.config import PretrainConfig


def main(cfg: PretrainConfig) -> None:
    """Pretrain."""
    from pretrain.run import pretrain  # after the configuration is accepted: it imports the engines

    pretrain(cfg)


if __name__ == "__main__":
    hydra_command(main)

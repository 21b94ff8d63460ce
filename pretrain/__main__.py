"""`python -m pretrain`: pretrain a model as the configuration says.

Holds nothing but the door; `pretrain.run` builds and trains.
"""

from pretrain.compose import launch
from pretrain.config import PretrainConfig


def main(cfg: PretrainConfig) -> None:
    """Pretrain."""
    from pretrain.run import pretrain  # after the configuration is accepted: it imports the engines

    pretrain(cfg)


if __name__ == "__main__":
    launch(main)

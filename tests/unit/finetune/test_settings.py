"""The root configuration of fine-tuning: every choice of every group composes, and what cannot be is refused."""

import pytest

from finetune.config import FINETUNE
from pretrain.compose import compose
from pretrain.errors import ConfigError
from pretrain.optim.adamw import AdamWConfig
from pretrain.optim.muon import MuonConfig

REQUIRED = ["task=classification", "task.train=a.tsv", "task.validation=b.tsv", "init_from=bert"]


def composed(*overrides):
    return compose([*REQUIRED, *overrides], root=FINETUNE)


def test_the_defaults_are_those_of_fine_tuning():
    assert composed().optim == AdamWConfig(lr=5e-5, beta2=0.999, weight_decay=0.01)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("adamw", AdamWConfig(lr=5e-5, weight_decay=0.01)),
        ("muon", MuonConfig(lr=5e-5, weight_decay=0.01)),
        ("adamw_finetune", AdamWConfig(lr=5e-5, beta2=0.999, weight_decay=0.01)),
    ],
)
def test_any_optimizer_has_the_learning_rate_of_fine_tuning(choice, expected):
    assert composed(f"optim={choice}").optim == expected


@pytest.mark.parametrize(
    ("group", "choices"),
    {
        "schedule": ["constant", "cosine", "linear", "wsd"],
        "strategy": ["ddp", "fsdp2", "zero0", "zero1", "zero2", "zero3"],
        "precision": ["bf16", "fp32", "fp16"],
        "attention": ["auto", "eager", "sdpa"],
        "tuning": ["full", "frozen", "lora"],
        "tracker": ["local", "tensorboard", "wandb"],
    }.items(),
)
def test_every_choice_composes(group, choices):
    for choice in choices:
        composed(f"{group}={choice}")


def test_the_removed_setting_of_several_seeds_names_the_command_that_took_its_place():
    assert composed("seeds=[]").seed == 1, "as runs from before have it in their config.yaml"
    with pytest.raises(ConfigError, match=r"^seeds=\[2, 1\]: .* python -m launch local -- finetune ... 'seed=2,1'$"):
        composed("seeds=[2,1]")


@pytest.mark.parametrize("epochs", ["0", "-1", "inf", "nan"])
def test_a_run_has_an_end(epochs):
    with pytest.raises(ConfigError, match=r"train.epochs=.*: must be above 0, and finite"):
        composed(f"train.epochs={epochs}")


def test_a_backend_without_biases_is_refused_where_the_network_has_one():
    cfg = composed("attention=flash", "precision=bf16")
    cfg.check_attention(bias=None)
    with pytest.raises(ConfigError, match=r"model\.positions=relative: attention=flash adds no bias"):
        cfg.check_attention(bias="model.positions=relative")

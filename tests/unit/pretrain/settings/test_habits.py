"""What people type who come from other programs: each is refused with the word that works here."""

import re

import pytest

from finetune.config import FINETUNE
from launch.local import LOCAL
from launch.slurm.submit import SLURM
from pretrain.compose import PRETRAIN, compose
from pretrain.errors import ConfigError
from pretrain.registry import flattened, plain
from pretrain.settings.habits import _HABITS, advice

TUNING = ["task=classification", "init_from=x", "task.train=a", "task.validation=b"]


def refused(*words, root=PRETRAIN) -> str:
    with pytest.raises(ConfigError) as told:
        compose(words, root)
    return str(told.value)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--optim.lr", "1e-3"], "--optim.lr 1e-3: settings are typed without dashes: optim.lr=1e-3"),
        (["--optim.lr=1e-3"], "--optim.lr=1e-3: settings are typed without dashes: optim.lr=1e-3"),
        (["--train.steps", "seed=1"], "--train.steps: settings are typed without dashes: train.steps=VALUE"),
        (["--lr", "3e-4"], "--lr 3e-4: no such option; here it is optim.lr=3e-4"),
        (["--max-steps=9"], "--max-steps=9: no such option; here it is train.steps=9"),
        (["--config", "a.yaml"], "--config a.yaml: a file of settings is named by experiment=a.yaml"),
        (["--unheard-of"], "--unheard-of: no such option; there are --help, --version, --cfg job"),
        (["optim.learning_rate=1"], "optim.learning_rate: no such setting; here it is optim.lr=1"),
        (["lr=1"], "lr: no such setting; here it is optim.lr=1"),
        (["learning_rate=1"], "here it is optim.lr=1"),
        (["batch_size=4"], "here it is train.batch_size=4"),
        (["max_steps=4"], "here it is train.steps=4"),
        (["num_train_epochs=4"], "train.steps counts optimizer steps"),
        (["train.epochs=4"], "train.steps counts optimizer steps"),
        (["per_device_train_batch_size=4"], "here it is train.micro_batch_size=4"),
        (["gradient_accumulation_steps=4"], "it follows from train.batch_size"),
        (["block_size=4"], "here it is data.seq_len=4"),
        (["n_layer=4"], "here it is model.layers=4"),
        (["fp16=true"], "precision=fp32, bf16, fp16 or fp8"),
        (["gradient_checkpointing=true"], "strategy.activation_checkpointing=none, selective or full"),
        (["torch_compile=true"], "compile=auto, none, block or model"),
        (["training.steps=4"], "here it is train.steps=4"),
        (["model=gpt2"], "named by init_from=PATH or org/name (choices: bart_base"),
        (["model=some/where"], "model=some/where: no such choice; trained weights, .* by init_from=some/where"),
        (["model=dmeo"], "did you mean demo?"),
        (["tokenizer=some/where"], "is named by tokenizer=file tokenizer.path=some/where"),
        (["data=books/a.txt"], "are named by data=text data.sources.text.paths=[books/a.txt]"),
    ],
)
def test_pretraining(words, told):
    message = refused(*words)
    assert all(part in message for part in told.split(".*")), message


@pytest.mark.parametrize(
    ("root", "word", "told"),
    [
        (FINETUNE, "num_train_epochs=2", "here it is train.epochs=2"),
        (FINETUNE, "max_length=64", "here it is task.max_tokens=64"),
        (FINETUNE, "model=bert", "init_from=PATH or org/name"),
        (FINETUNE, "max_steps=64", "train.epochs counts how often each example is seen"),
        (LOCAL, "--nproc_per_node=2", "--nproc_per_node=2: no such option; here it is nproc=2"),
        (SLURM, "num_nodes=2", "here it is nodes=2"),
        (LOCAL, "experiment=demo", "experiment: no such setting of this command"),
    ],
)
def test_the_other_commands(root, word, told):
    assert told in refused(*(TUNING if root is FINETUNE else []), word, root=root)


def test_every_name_of_ours_in_the_table_exists():
    texts = ["init_from=x", "task.train=a", "task.validation=b"]
    ours = {
        key
        for root, words in ((PRETRAIN, ["objective=masked_lm", "model=encoder"]), (FINETUNE, [*texts, "task=qa"]))
        for key in flattened(plain(compose([*words, "optim=adamw"], root)))
    }
    ours |= {key.rsplit(".", depth)[0] for key in ours for depth in (1, 2)} | {
        "nproc",
        "nodes",
        "experiment",
        "model.kv_heads",
    }
    named = [name for names in _HABITS.values() for name in names if " " not in name and "=" not in name]
    assert sorted(set(named) - ours) == []
    prose = {key for names in _HABITS.values() for text in names for key in re.findall(r"\b[a-z_]+\.[a-z_]+\b", text)}
    assert sorted(prose - ours - {"data.sources", "text.paths", "sources.text", "tokenizer.path"}) == []


def test_what_is_known_or_unheard_of_gets_no_advice():
    known = {"optim.lr", "train.steps", "seed"}
    assert advice("seed", "1", known) == advice("nonsense", "1", known) == advice("train.steps", "1", known) == ""
    assert advice("Learning-Rate", "", known) == "; here it is optim.lr"

"""Configuration: what is refused, how it is named, and that a written config composes back to itself."""

import os
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
from forks import python

from finetune.config import FINETUNE, FinetuneConfig
from pretrain.compose import compose, compose_run
from pretrain.errors import ConfigError
from pretrain.registry import plain
from pretrain.train.run_dir.base import RunConfig, RunDirectory
from pretrain.train.run_dir.record import read_record


def refused(*arguments: str, directory: Path) -> str:
    """Run the entry point; return its message. It must exit 2 and leave no trace."""
    done = python("-m", "pretrain", f"run.root={directory}/runs", *arguments, cwd=directory)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert not list(directory.iterdir()), "a refused command leaves nothing behind"
    return done.stderr


@pytest.mark.parametrize(
    ("argument", "parts"),
    [
        ("train.stepz=5", ["train.stepz", "did you mean train.steps?"]),
        ("trainer.max_steps=5", ["trainer.max_steps", "no such setting"]),
        ("modle=demo", ["modle", "did you mean model?"]),
        ("model.layers=two", ["model.layers=two", "takes a whole number"]),
        ("+train.foo=1", ["train.foo", "no such setting"]),
        ("+model.dmi=1", ["model.dmi", "no such setting"]),
        ("optim.lr=fast", ["optim.lr", "fast"]),
        ("optim.lr=-1", ["optim.lr=-1"]),
        ("train.steps=0", ["train.steps=0", "at least 1"]),
        ("model=dmeo", ["model=dmeo", "did you mean demo?"]),
        ("precision=bf17", ["precision=bf17", "did you mean bf16?"]),
        ("run.name=../../etc", ["run.name=../../etc"]),
        ("data=text", ["data.sources.text.paths=[]", "at least one"]),
        ("train.batch_size=9", ["train.batch_size=9", "8", "16"]),
        ("--multirun", ["--multirun"]),
        ("+source@data.sources.more=text data.sources.more.paths=[nowhere.txt]", ["nowhere.txt matches no file"]),
        ("attention=flash", ["precision", "precision=bf16"]),
        ("attention=flex", ["attention=flex", "CUDA device", "attention=sdpa"]),
        ("compile.mode=fastest", ["compile.mode=fastest", "max-autotune"]),
    ],
)
def test_refusals_name_key_value_and_rule(argument, parts, tmp_path):
    message = refused(*argument.split(), "train.micro_batch_size=8", directory=tmp_path)
    for part in parts:
        assert part in message


def test_a_folder_named_conf_where_the_command_is_typed_hides_nothing(tmp_path):
    (tmp_path / "conf").mkdir()
    done = python("-m", "pretrain", "--cfg", "job", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "seq_len" in done.stdout


def test_fine_tuning_shows_its_settings_before_a_task_is_chosen():
    done = python("-m", "finetune", "--help")
    assert "task: classification, qa, seq2seq, tokens" in done.stdout and "layer_decay: 1.0" in done.stdout
    listed = re.findall(r"^([a-z/]+): .*,", done.stdout, re.MULTILINE)
    assert "experiment/synthetic" in listed
    assert set(listed) - {"experiment/synthetic"} <= {field.name for field in fields(FinetuneConfig)}


@pytest.mark.parametrize("question", [["--help"], ["--cfg", "job"]])
def test_who_reads_only_the_beginning_of_an_answer_gets_no_traceback(question):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "finetune", "task=classification", *question]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


TAKE_A_STEP = """
import sys, numpy, torch, finetune.run
from pretrain.compose import compose
from pretrain.data.batch import Batch, Inputs
from pretrain.distributed.world import World
from pretrain.init_from import InitialWeights
from pretrain.run import build_module

cfg = compose(["model.layers=1", "model.width=8", "model.heads=1", "optim=muon"])  # AdamW is in it
module = build_module(cfg, vocab_size=8)
strategy = cfg.strategy.build(world=World.alone(), precision=cfg.precision, compilation=cfg.compile)
first = InitialWeights(module, 1)
wrapped = strategy.setup(module, cfg.optim.build)
strategy.load_fragments(first)
batch = Batch.of(Inputs(numpy.array([1, 2, 3, 4, 5]), numpy.array([2, -100, 4, 5, 6]), numpy.array([0, 2, 5], "int32")))
strategy.backward(wrapped(batch).total)
strategy.step(1.0, 1.0)
slow = ("torch", "torch._dynamo", "sympy", "accelerate", "torch.distributed.tensor")
print([name for name in slow if name in sys.modules])
"""


def test_one_process_trains_without_what_takes_as_long_to_import_as_torch():
    done = subprocess.run([sys.executable, "-c", TAKE_A_STEP], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("['torch']\n", "")


def test_compose_refuses_like_the_command_line():
    with pytest.raises(ConfigError, match=r"did you mean train\.steps"):
        compose(["train.step=4"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task=qa", "task.strid=9"], "task.strid: no such setting; did you mean task.stride"),
        (["task=tokens", "optm=muon"], "optm: no such setting; did you mean optim"),
        (
            [
                "task=tokens",
                "model=bert_base",
                "model.max_seq_len=8",
                "init_from=a",
                "task.train=b",
                "task.validation=b",
            ],
            "model=encoder: init_from=a brings its own; leave one of them out",
        ),
        (["task=token"], "task=token: no such choice; did you mean tokens"),
        ([], r"task: required and not given; add task=.* \(choices: classification, qa, seq2seq, tokens\)"),
        (["task=qa", "task.train=a"], "required and not given"),
        (["task=qa", "experiment=demo"], r"conf/experiment/demo.yaml:10: data: no such setting"),
    ],
)
def test_fine_tuning_refuses_by_name_too(overrides, message):
    with pytest.raises(ConfigError, match=message):
        compose(overrides, root=FINETUNE)


def test_a_file_that_is_no_yaml_is_refused_by_name(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "broken.yaml").write_text("train:\n  steps: 5\n seed: [1\n")
    with pytest.raises(ConfigError, match=r"broken\.yaml"):
        compose(["experiment=broken", f"--config-dir={tmp_path}"])


@pytest.mark.parametrize("experiment", ["demo"])
def test_a_written_config_composes_back_to_itself(experiment, tmp_path):
    cfg = compose([f"experiment={experiment}", "optim.lr=0.25", f"run.root={tmp_path}", "data.sources.stdlib.weight=2"])
    directory = RunDirectory.claim(cfg.run)
    directory.write_config(cfg)
    again = compose_run(directory.path)
    assert replace(again, attention=cfg.attention) == cfg
    assert type(again.model) is type(cfg.model)
    assert plain(again)["optim"]["lr"] == 0.25


def test_a_run_directory_is_held_by_one_process(tmp_path):
    cfg = RunConfig(name="held", root=str(tmp_path))
    first = RunDirectory.claim(cfg)
    with pytest.raises(ConfigError, match=r"held is in use by pid \d+ on host"):
        RunDirectory.claim(cfg)
    del first
    RunDirectory.claim(cfg)


def test_a_fresh_run_is_refused_where_one_has_begun_and_not_where_a_launcher_made_the_directory(tmp_path):
    (tmp_path / "new" / "ranks").mkdir(parents=True)
    cfg = RunConfig(name="new", root=str(tmp_path), fresh=True)
    refused = RunDirectory.claim(cfg)
    refused.record(exit=2)
    del refused
    first = RunDirectory.claim(cfg)
    first.record(name="new")
    first.begin()
    first.record(exit=0)
    del first
    with pytest.raises(ConfigError, match=r"run.fresh=true: .*new holds a run"):
        RunDirectory.claim(cfg)
    refused = RunDirectory.claim(RunConfig(name="new", root=str(tmp_path)))
    refused.record(exit=2)
    assert read_record(tmp_path / "new") == {"name": "new", "exit": 0}, "as the start that was accepted left it"


def test_a_run_keeps_the_messages_of_the_packages_that_it_names_while_it_lasts(tmp_path):
    script = f"""
import logging
from pretrain.train.run_dir.base import RunConfig, RunDirectory
with RunDirectory.claim(RunConfig(name="told", root={str(tmp_path)!r})).log_to("pretrain", "finetune"):
    for package in ("pretrain.train.loop", "finetune.run", "urllib3"):
        logging.getLogger(package).info("from %s", package)
logging.getLogger("pretrain.train.loop").info("from the next run")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == "from pretrain.train.loop\nfrom finetune.run\n"
    lines = (tmp_path / "told" / "log.txt").read_text().splitlines()
    assert [line.partition(" INFO ")[2] for line in lines] == [
        "pretrain.train.loop: from pretrain.train.loop",
        "finetune.run: from finetune.run",
    ]

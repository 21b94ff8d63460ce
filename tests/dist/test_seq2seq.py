"""Whole runs of task=seq2seq on several ranks: as one process, under every strategy; killed and resumed."""

import json
import random

import pytest
from ranks import column, run
from run_directories import TEXTS, make_run
from test_pretrain import assert_equal_runs, kill_when, logged

from pretrain.checkpoint.commit import step_names
from pretrain.tokenizer.bpe import BpeTokenizer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with pairs of uneven lengths and a tiny model of each kind."""
    folder, draw = tmp_path_factory.mktemp("seq2seq"), random.Random(5)
    for name, size in (("train", 80), ("validation", 7)):
        words = ["".join(draw.choices("abcd", k=draw.randint(1, 12))) for _ in range(size)]
        (folder / f"{name}.jsonl").write_text(
            "".join(json.dumps({"source": w, "target": w[::-2]}) + "\n" for w in words)
        )
    tokenizer = BpeTokenizer(vocab_size=270, special_tokens=["<pad>", "<s>", "</s>"]).train(iter(TEXTS))
    about = {"tokenizer": tokenizer, "vocab_size": 270}
    make_run(folder / "pairs", model="encoder_decoder", decoder_start=0, **about)
    make_run(folder / "decoder", **about)
    return folder


def tuned(name: str, *more: str) -> list[str]:
    return [
        *(f"run.name={name}", "task=seq2seq", "task.train=train.jsonl", "task.validation=validation.jsonl"),
        *("task.max_source_tokens=16", "task.max_target_tokens=16", "train.batch_size=8", "train.epochs=2"),
        *("optim.lr=2e-3", "log.every=1", "dropout=0", "init_from=pairs", *more),
    ]


def tune(*overrides: str, ranks: int = 1, cwd) -> None:
    run(*overrides, ranks=ranks, cwd=cwd, program="finetune")


@pytest.fixture(scope="module")
def one_rank(place):
    for model in ("pairs", "decoder"):
        tune(*tuned(f"one-{model}", "train.max_tokens=512", f"init_from={model}"), cwd=place)
    return place / "runs"


@pytest.mark.parametrize("strategy", ["ddp", "zero2", "zero3", "fsdp2"])
@pytest.mark.parametrize("model", ["pairs", "decoder"])
def test_two_ranks_follow_one_process_and_write_the_same(place, one_rank, model, strategy):
    name = f"{model}-{strategy}"
    tune(*tuned(name, "train.max_tokens=40", f"init_from={model}", f"strategy={strategy}"), ranks=2, cwd=place)
    one, two = one_rank / f"one-{model}", place / "runs" / name
    for key, split in (("loss", "train"), ("grad_norm", "train"), ("loss", "validation")):
        first, second = column(one, key, split), column(two, key, split)
        assert first.keys() == second.keys() and len(first) >= 2
        assert list(second.values()) == pytest.approx(list(first.values()), rel=1e-5)
    assert max(column(one, "loss")) == 20
    for key in ("accuracy", "chrf", "exact_match"):
        assert column(two, key, "validation") == pytest.approx(column(one, key, "validation"))


def kill(place, name: str, *settings: str) -> None:
    """Kill a run that has saved a step and gone on."""
    run = place / "runs" / name
    reached = lambda: logged(run) >= 10 and step_names(run / "checkpoints")
    kill_when(reached, *tuned(name, *settings), cwd=place, program="finetune")


def test_killed_and_resumed_equals_never_interrupted(place):
    settings = ["dropout=0.2", "task.label_smoothing=0.1", "eval.every=3", "checkpoint.keep=1"]
    tune(*tuned("whole", *settings), cwd=place)
    killed = place / "runs" / "killed"
    kill(place, "killed", *settings)
    tune(*tuned("killed", *settings), cwd=place)
    assert "resuming from" in (killed / "log.txt").read_text()
    assert_equal_runs(place / "runs" / "whole", killed)
    assert column(place / "runs" / "whole", "chrf", "validation") == column(killed, "chrf", "validation")


def test_resumed_on_more_ranks_it_goes_on_as_one_process(place, one_rank):
    kill(place, "moved", "train.max_tokens=512", "eval.every=3")
    tune(*tuned("moved", "train.max_tokens=40", "eval.every=3", "strategy=zero3"), ranks=2, cwd=place)
    moved = place / "runs" / "moved"
    assert "resuming from" in (moved / "log.txt").read_text()
    assert column(moved, "loss") == pytest.approx(column(one_rank / "one-pairs", "loss"), rel=1e-5)

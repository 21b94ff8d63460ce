"""Several runs in one process, as in a notebook, and what is there of the process before and after."""

import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

import torch.distributed

from pretrain.errors import Preempted

SETTINGS = [
    *("data=text", "data.sources.text.paths=[texts/*.txt]", "data.prepare.held_out=0.1", "data.seq_len=16"),
    *("tokenizer.vocab_size=280", "model=decoder", "model.layers=1", "model.width=16", "model.heads=2"),
    *("train.batch_size=4", "train.micro_batch_size=2", "train.steps=3", "log.every=1", "eval.every=2"),
]


def state() -> dict:
    """Return what a run might leave behind in its process."""
    loggers = [logging.getLogger(name) for name in ("", "pretrain", "finetune")]
    return {
        "signals": {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)},
        "held": signal.pthread_sigmask(signal.SIG_BLOCK, []),
        "logging": {logger.name: (logger.level, *logger.handlers) for logger in loggers},
        "threads": {thread.name for thread in threading.enumerate()},
        "environment": dict(os.environ),
        "group": torch.distributed.is_initialized(),
        "excepthook": sys.excepthook,
        "folder": Path.cwd(),
    }


def interrupt_after_two_steps(run: Path) -> None:
    metrics = run / "metrics.jsonl"
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 3:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)


def check_unchanged(before: dict) -> None:
    now = state()
    assert now == before, {key: (before[key], now[key]) for key in now if now[key] != before[key]}


def train_several(strategy: str) -> None:
    """Pretrain, go on, refuse, be interrupted, start from a run, and fine-tune; after each all is as it was before."""
    import finetune
    import pretrain

    Path("texts").mkdir()
    for number in range(30):
        Path(f"texts/{number}.txt").write_text(f"story {number} of the quick fox " * (number + 3))
    rows = [f"the fox {number},{'odd' if number % 2 else 'even'}\n" for number in range(13)]
    Path("tune.csv").write_text("text,label\n" + "".join(rows))
    settings = [*SETTINGS, f"strategy={strategy}"]
    before = state()
    run = pretrain.pretrain(pretrain.configure(*settings, "run.name=base"))
    check_unchanged(before)
    assert pretrain.pretrain(pretrain.configure(*settings, "run.name=base", "train.steps=5")) == run
    assert pretrain.history(run)["step"].max() == 5
    check_unchanged(before)
    try:
        pretrain.pretrain(pretrain.configure(*settings, "run.name=base", "seed=2"))
    except pretrain.HeadwaterError as error:
        assert "seed was 1 and is now 2" in str(error)
        held = error  # as a notebook holds the last one, with all that its frames hold
    assert held
    check_unchanged(before)
    interrupting = threading.Thread(target=interrupt_after_two_steps, args=[Path("runs/stopped")])
    interrupting.start()
    try:
        pretrain.pretrain(pretrain.configure(*settings, "run.name=stopped", "train.steps=100000"))
    except Preempted as stopped:
        last = pretrain.history("runs/stopped")["step"].max()
        assert f"step {last} of 100000 is saved" in str(stopped)
        assert Path(f"runs/stopped/checkpoints/step-{last:08d}").is_dir()
    interrupting.join()
    check_unchanged(before)
    pretrain.pretrain(pretrain.configure(*settings, "run.name=next", f"init_from={run}"))
    pretrain.pretrain(pretrain.configure(*settings, "run.name=base", "train.steps=6"))
    task = ["task=classification", "task.train=tune.csv", "task.validation=tune.csv", "task.max_tokens=16"]
    cfg = finetune.configure(*task, f"init_from={run}", "train.epochs=1", f"strategy={strategy}")
    tuned = finetune.load(finetune.finetune(cfg))
    assert len(tuned.predict(["the fox"])) == 1
    check_unchanged(before)

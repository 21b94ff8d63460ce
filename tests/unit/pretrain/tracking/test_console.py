"""What the console shows, in a pipe and on a real (pseudo) terminal."""

import io
import os
import pty
import re
import subprocess
import sys

import pytest

from pretrain.tracking.base import Sample
from pretrain.tracking.console import ConsoleSink

TRAIN = {
    "split": "train",
    "loss": 3.21456,
    "lr": 3e-4,
    "grad_norm": 1.234,
    "tokens_per_s": 12345.6,
    "tokens": 1,
    "skipped": 0,
}


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_plain_lines_with_time_left():
    clock, stream = Clock(), io.StringIO()
    sink = ConsoleSink(total_steps=1000, start_step=100, stream=stream, clock=clock)
    clock.now = 100  # the first 10 steps took 100 s, compilation included
    sink.log({"step": 110, **TRAIN, "mfu": None})
    clock.now = 120  # the next 20 took 20 s
    sink.log({"step": 130, **TRAIN, "mfu": 0.4123, "skipped": 2})
    clock.now = 130
    sink.log({"step": 140, **TRAIN, "loss": None, "skipped": 1})
    sink.log({"step": 140, **TRAIN, "sentence_loss": 0.69, "sentence_accuracy": 0.5})
    sink.log(
        {"step": 140, "split": "validation", "loss": 3.0, "perplexity": 20.0855, "bits_per_byte": 1.44, "tokens": 9}
    )
    sink.log({"step": 140, "split": "validation", "loss": 0.5, "f1": 0.8012, "matthews": 0.25, "f1/PER": 0.1})
    answers = {"choices/quiz{}": 0.25, "choices/quiz{}/raw": 0.3}
    sink.log({"step": 140, "split": "validation", "loss": 0.5, **answers, "accuracy": 0.5})
    sink.log({"step": 140, "split": "validation", "rouge_l": 0.123456, "f1_micro": 0.1, "accuracy": 0.5, "tokens": 9})
    sink.close(0)
    assert stream.getvalue().splitlines() == [
        "step  110/1000  loss 3.2146  lr 3.00e-04  grad norm 1.23  12,346 tokens/s  2:28:20 left",
        "step  130/1000  loss 3.2146  lr 3.00e-04  grad norm 1.23  12,346 tokens/s  MFU 41.2%  2 skipped  0:14:30 left",
        "step  140/1000  lr 3.00e-04  grad norm 1.23  12,346 tokens/s  no target  1 skipped  0:14:20 left",
        "step  140/1000  loss 3.2146  of sentences 50.0%  lr 3.00e-04  grad norm 1.23  12,346 tokens/s  0:14:20 left",
        "step  140/1000  validation:  loss 3.0000  perplexity 20.09  1.4400 bits per byte",
        "step  140/1000  validation:  loss 0.5000  F1 80.1%  Matthews 0.250",
        "step  140/1000  validation:  loss 0.5000  accuracy 50.0%  quiz{} 25.0%",
        "step  140/1000  validation:  accuracy 50.0%  rouge_l 0.1235",
    ]


def test_time_left_follows_the_work_that_is_left():
    clock, stream = Clock(), io.StringIO()
    work = lambda step: 8 * min(step, 10) + 32 * max(step - 10, 0)  # batches grow to four times their size
    sink = ConsoleSink(total_steps=30, work=work, stream=stream, clock=clock)
    for step, seconds in ((2, 100), (10, 164), (15, 324)):  # after the first stretch a sequence takes a second
        clock.now = seconds
        sink.log({"step": step, **TRAIN})
    left = [line.rpartition("  ")[2] for line in stream.getvalue().splitlines()]
    assert left == ["1:13:20 left", "0:10:40 left", "0:08:00 left"]


SHOW = """
from pretrain.tracking.console import ConsoleSink
sink = ConsoleSink(total_steps=20)
common = {"split": "train", "loss": 2.5, "lr": 1e-3, "grad_norm": 1.0, "tokens_per_s": 54321.0, "mfu": 0.5, "tokens": 1}
sink.log({"step": 10, **common})
sink.log({"step": 10, "split": "validation", "loss": 3.0, "perplexity": 20.1, "bits_per_byte": 1.44, "tokens": 9})
sink.log({"step": 20, **common})
sink.close(0)
"""


def on_terminal(program, **more):
    """Return what a program writes to a terminal of 120 columns, or another one."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": "120", "TERM": "xterm-256color", **more}
    process = subprocess.Popen([sys.executable, "-c", program], stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # Linux's end of file on a pseudo-terminal
            break
        if not part:
            break
        shown += part
    os.close(ours)
    assert process.wait() == 0, shown
    return shown.decode()


def test_bar_on_a_terminal():
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", on_terminal(SHOW))
    assert "━" in shown
    assert re.search(r"20/20\s+loss 2.5000  54,321 tokens/s  MFU 50.0%\s+0:00:00 left", shown)
    assert "step 10/20  validation:  loss 3.0000  perplexity 20.10  1.4400 bits per byte" in shown


def test_lines_on_a_terminal_when_asked_for():
    shown = on_terminal(SHOW.replace("total_steps=20", "total_steps=20, bar=False"))
    assert "━" not in shown
    assert "step 20/20  loss 2.5000  lr 1.00e-03" in shown


@pytest.mark.parametrize("terminal", [{"COLUMNS": "40"}, {"COLUMNS": "79"}, {"TERM": "dumb"}])
def test_lines_on_a_terminal_that_has_no_room_for_a_bar_or_cannot_draw_one(terminal):
    shown = on_terminal(SHOW, **terminal)
    assert "\x1b" not in shown and shown.splitlines()[-1].endswith("MFU 50.0%  0:00:00 left")


def test_no_colours_where_none_are_wanted():
    colour = re.compile(r"\x1b\[[0-9;]*m")
    assert colour.search(on_terminal(SHOW))
    assert not colour.search(on_terminal(SHOW, NO_COLOR="1"))


def test_a_bar_in_another_encoding():
    shown = on_terminal(SHOW, PYTHONIOENCODING="ascii")
    assert "---" in shown and "━" not in shown and "20/20" in shown


def test_rich_is_not_imported_without_a_terminal():
    program = SHOW + "\nimport sys; sys.exit('rich' in sys.modules or 'wandb' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], stdout=subprocess.DEVNULL, check=False).returncode == 0


def test_samples_are_one_line_each_clipped_and_without_escapes():
    stream = io.StringIO()
    sink = ConsoleSink(total_steps=1000, stream=stream)
    sink.sampled(50, [Sample("The time", " of\n\n  the \x1b[2Jyear"), Sample("", ""), Sample("abc " * 10, "xyz " * 40)])
    assert stream.getvalue().splitlines() == [
        "step   50/1000  sample:  [The time] of the [2Jyear",
        "step   50/1000  sample:  [](the document ends)",
        f"step   50/1000  sample:  [...{('abc ' * 10)[-21:]}]{('xyz ' * 40)[:69]}...",
    ]

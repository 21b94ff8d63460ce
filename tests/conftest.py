"""Runs that several tests look at; and the modules beside the tests become importable."""

import gc
import random
import signal
import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent / folder) for folder in ("support", "dist", "slurm", "docs")]

from ranks import SAMPLED, run, tiny

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a shell: commands would ignore it, too
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Collections look at all that lives, and some tests ask for one: what is there before the first test is left out.
def pytest_collection_finish():
    gc.collect()
    gc.freeze()


WORDS = ["time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state"]


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Path:
    """A folder with a text of 400 uneven paragraphs, prepared once for all tests."""
    folder = tmp_path_factory.mktemp("place")
    draw = random.Random(5)
    paragraphs = [" ".join(draw.choices(WORDS, k=draw.randint(1, 90))) for _ in range(400)]
    (folder / "text.txt").write_text("\n\n".join(paragraphs))
    run(*tiny("first", "train.steps=3"), cwd=folder)
    return folder


@pytest.fixture(scope="session")
def uninterrupted(place) -> Path:
    run(*tiny("uninterrupted", "model.dropout=0.1", *SAMPLED), cwd=place)
    return place / "runs" / "uninterrupted"


@pytest.fixture(scope="session")
def one_process(place) -> Path:
    run(*tiny("one", "train.steps=50", "checkpoint.every=50", *SAMPLED), cwd=place)
    return place / "runs" / "one"

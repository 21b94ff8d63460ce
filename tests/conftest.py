"""Runs that several tests look at; and the modules beside the tests become importable."""

import gc
import os
import random
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# As many tests run at a time as there are cores: threads of theirs would wait for each other, on a busy machine for 30
# times as long as they compute. Before torch, which reads it once; every process that a test starts gets it, too.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Hundreds of processes import the product: its bytecode is kept, whatever the environment says.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

settings.register_profile("any machine", deadline=None)  # an example may take as long as a busy machine needs
settings.load_profile("any machine")

sys.path[:0] = [str(Path(__file__).parent / folder) for folder in ("support", "dist", "slurm", "docs")]

from ranks import SAMPLED, run, tiny

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a shell: commands would ignore it, too
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Collections look at all that lives, and some tests ask for one: what is there before the first test is left out.
def pytest_collection_finish():
    gc.collect()
    gc.freeze()


# Of a suite that runs several files at a time: a long one that began last would leave the other cores idle.
LONGEST = ("docs/test_documentation", "slurm/test_launch", "dist/test_strategies", "dist/test_kinds", "dist/test_demo")


def pytest_collection_modifyitems(items):
    """Begin with the files that take minutes, each as a whole."""
    begins = {Path(__file__).parent / f"{name}.py": at for at, name in enumerate(LONGEST)}
    items.sort(key=lambda item: begins.get(item.path, len(LONGEST)))


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
    run(*tiny("one", *SAMPLED), cwd=place)
    return place / "runs" / "one"

"""Fine-tuning on WNUT-17's entities against the Hugging Face Trainer by its `run_ner` recipe: speed, and scores.

Holds the recipe; measuring is in `duel`, the peer in `peers/trainer_tokens`.

    python -m bench.tokens MODEL TRAIN.conll TEST.conll
    python -m bench.tokens MODEL TRAIN.conll TEST.conll --scores --seeds 1 2 3

MODEL is the directory of a released checkpoint; the files have a word and its tag on a line, and blank lines between
sentences. Entities are counted by seqeval on both sides.
"""

from __future__ import annotations

from bench.duel import compete, parser
from bench.tuning import Recipe, Task

RECIPE = Recipe(batch=8, lr=5e-5, weight_decay=0.0, epochs=3.0, max_tokens=256)
TASK = Task(
    unit="sentences",
    scores=["f1", "precision", "recall"],
    headwater=["task=tokens"],
    peer=["trainer_tokens.py"],
    batching=["padded", "grouped"],
)

if __name__ == "__main__":
    compete(TASK, parser(__doc__, RECIPE).parse_args())

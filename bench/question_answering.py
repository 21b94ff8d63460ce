"""Fine-tuning on SQuAD against the Hugging Face Trainer by its `run_qa` recipe: speed side by side, and scores.

Holds the recipe; measuring is in `duel`, the peer in `peers/trainer_qa`.

    python -m bench.question_answering MODEL TRAIN.json TEST.json
    python -m bench.question_answering MODEL TRAIN.json TEST.json --scores --seeds 1

MODEL is the directory of a released checkpoint, the files are in SQuAD's layout; `bench.subsets` makes smaller ones.
"""

from __future__ import annotations

from bench.duel import compete, parser
from bench.tuning import Recipe, Task

STRIDE = 128  # tokens that one window of a context shares with the next
RECIPE = Recipe(batch=12, lr=3e-5, weight_decay=0.0, epochs=2.0, max_tokens=384)
TASK = Task(
    unit="windows",
    scores=["exact_match", "f1"],
    headwater=["task=qa", f"task.stride={STRIDE}"],
    peer=["trainer_qa.py", "--stride", str(STRIDE)],
    batching=["max", "padded", "masked", "grouped"],
    same="trainer-masked",
)

if __name__ == "__main__":
    compete(TASK, parser(__doc__, RECIPE).parse_args())

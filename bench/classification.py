"""Fine-tuning a classifier of texts against the Hugging Face Trainer: speed side by side, and scores over seeds.

Holds the recipe; measuring is in `duel`, the peer in `peers/trainer_classification`.

    python -m bench.classification MODEL TRAIN TEST
    python -m bench.classification MODEL TRAIN TEST --scores --seeds 1 2 3 --max-tokens 256

MODEL is the directory of a released checkpoint; the files are CSV, TSV or JSON lines with a column of texts and one of
labels, of which there may be several. `bench.subsets` makes such files of SST-2, IMDb and AG News; for GLUE's own there
is `--text sentence`.
"""

from __future__ import annotations

from bench.duel import compete, parser
from bench.tuning import Recipe, Task

RECIPE = Recipe(batch=32, lr=5e-5, weight_decay=0.01, epochs=3.0, max_tokens=128)


def main() -> None:
    command_line = parser(__doc__, RECIPE)
    command_line.add_argument("--text", default="text", help="column of texts, default %(default)s")
    command_line.add_argument("--label", default="label", help="column of labels, default %(default)s")
    args = command_line.parse_args()
    task = Task(
        unit="texts",
        scores=["accuracy"],
        headwater=["task=classification", f"task.columns.text={args.text}", f"task.columns.label={args.label}"],
        peer=["trainer_classification.py", "--text", args.text, "--label", args.label],
        batching=["padded", "grouped"],
    )
    compete(task, args)


if __name__ == "__main__":
    main()

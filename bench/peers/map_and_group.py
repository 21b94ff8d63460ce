"""The usual way: map a tokenizer over a data set, join and cut the ids into blocks, save to disk.

Holds nothing of Headwater. Arguments: JSON lines, tokenizer.json, output directory, number of processes.
"""

import json
import sys
from itertools import chain
from pathlib import Path

import datasets
from transformers import PreTrainedTokenizerFast

BLOCK = 1024  # tokens


def main():
    corpus, tokenizer_file, out, processes = sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=tokenizer_file)
    datasets.disable_progress_bars()
    num_proc = processes if processes > 1 else None

    def tokenize(examples):
        return tokenizer(examples["text"])

    def group(examples):
        joined = {key: list(chain(*examples[key])) for key in examples}
        total = len(joined["input_ids"]) // BLOCK * BLOCK
        blocks = {key: [ids[at : at + BLOCK] for at in range(0, total, BLOCK)] for key, ids in joined.items()}
        blocks["labels"] = blocks["input_ids"].copy()
        return blocks

    raw = datasets.load_dataset("json", data_files=corpus, split="train", cache_dir=str(out / "cache"))
    ids = raw.map(tokenize, batched=True, num_proc=num_proc, remove_columns=raw.column_names)
    blocks = ids.map(group, batched=True, num_proc=num_proc)
    blocks.save_to_disk(out / "saved", num_proc=num_proc)
    (out / "tokens.json").write_text(json.dumps(len(blocks) * BLOCK))


if __name__ == "__main__":
    main()

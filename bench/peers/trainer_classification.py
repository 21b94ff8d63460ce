"""Hugging Face Trainer fine-tuning a classifier of texts, as its documentation shows it.

`padded` is its default (each batch padded to its longest text), `grouped` batches texts of like length.
"""

import csv
import json
from pathlib import Path

import torch
from recipe import command_line, released, trained
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding


def texts(path, text, label):
    """Return the (text, label) pairs of a CSV, a TSV without quotes, or JSON lines."""
    with Path(path).open(encoding="utf-8", newline="") as lines:
        match Path(path).suffix:
            case ".csv":
                rows = list(csv.DictReader(lines))
            case ".tsv":
                rows = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
            case _:
                rows = [json.loads(line) for line in lines]
    return [(row[text], str(row[label])) for row in rows]


class Texts(torch.utils.data.Dataset):
    """Encoded texts with the numbers of their labels."""

    def __init__(self, rows, numbers, tokenizer, max_tokens):
        self.encoded = tokenizer([text for text, _ in rows], truncation=True, max_length=max_tokens)
        self.labels = [numbers[label] for _, label in rows]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {key: values[index] for key, values in self.encoded.items()} | {"label": self.labels[index]}


def main():
    parser = command_line("padded", "grouped")
    parser.add_argument("--text", required=True, help="column")
    parser.add_argument("--label", required=True, help="column")
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    rows = texts(args.train, args.text, args.label)
    numbers = {label: number for number, label in enumerate(sorted({label for _, label in rows}))}
    trainer = trained(
        args,
        model=released(AutoModelForSequenceClassification, args, num_labels=len(numbers)),
        train_dataset=Texts(rows, numbers, tokenizer, args.max_tokens),
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    if args.test:
        test = Texts(texts(args.test, args.text, args.label), numbers, tokenizer, args.max_tokens)
        found = trainer.predict(test)
        print(json.dumps({"accuracy": float((found.predictions.argmax(1) == found.label_ids).mean())}), flush=True)


main()

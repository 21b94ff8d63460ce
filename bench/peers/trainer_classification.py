"""Hugging Face Trainer fine-tuning a classifier of sentences, as its documentation shows it.

`padded` is its default (each batch padded to its longest sentence), `grouped` batches sentences of like length.
Everything that is not the workload is the Trainer's default.
"""

import argparse
import csv
import json
import tempfile
from pathlib import Path

import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("model", help="directory of a released checkpoint")
    parser.add_argument("train", help="TSV with the columns sentence and label")
    parser.add_argument("dev", help="the same, to be measured at the end; none if empty")
    parser.add_argument("--batching", choices=["padded", "grouped"], required=True)
    parser.add_argument("--epochs", type=float, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--weight-decay", type=float, required=True)
    parser.add_argument("--max-tokens", type=int, required=True)
    parser.add_argument("--attention-dropout", type=float, default=0.1, help="its default follows the released config")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


class Sentences(torch.utils.data.Dataset):
    """Encoded sentences with their labels."""

    def __init__(self, path, tokenizer, max_tokens):
        with Path(path).open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
        texts = [row["sentence"] for row in rows]
        self.encoded = tokenizer(texts, truncation=True, max_length=max_tokens)
        self.labels = [int(row["label"]) for row in rows]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {key: values[index] for key, values in self.encoded.items()} | {"label": self.labels[index]}


class Report(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        print(json.dumps({"step": state.global_step}), flush=True)


def main():
    args = arguments()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForSequenceClassification.from_pretrained(
        args.model, attention_probs_dropout_prob=args.attention_dropout
    )
    dev = Sentences(args.dev, tokenizer, args.max_tokens) if args.dev else None
    with tempfile.TemporaryDirectory() as output:
        training = TrainingArguments(
            output_dir=output,
            num_train_epochs=args.epochs,
            per_device_train_batch_size=args.batch,
            per_device_eval_batch_size=args.batch,
            learning_rate=args.lr,
            weight_decay=args.weight_decay,
            train_sampling_strategy="group_by_length" if args.batching == "grouped" else "random",
            save_strategy="no",
            report_to="none",
            seed=args.seed,
            use_cpu=True,
        )
        trainer = Trainer(
            model=model,
            args=training,
            train_dataset=Sentences(args.train, tokenizer, args.max_tokens),
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=lambda found: {"accuracy": float((found.predictions.argmax(1) == found.label_ids).mean())},
            callbacks=[Report()],
        )
        trainer.train()
        if dev:
            print(json.dumps({"accuracy": trainer.evaluate(dev)["eval_accuracy"]}), flush=True)


main()

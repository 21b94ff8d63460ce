"""Hugging Face Trainer fine-tuning on tags of words, by the recipe of its example script `run_ner`, written anew.

A word's first token learns its tag. `padded` is the recipe, each batch padded to its longest sentence; `grouped`
batches sentences of like length.
"""

import json
from pathlib import Path

import torch
from recipe import command_line, released, trained
from seqeval.metrics import f1_score, precision_score, recall_score
from transformers import AutoModelForTokenClassification, AutoTokenizer, DataCollatorForTokenClassification

IGNORED = -100


def sentences(path):
    """Return the sentences of CoNLL columns, lists of (word, tag)."""
    found = [[]]
    for line in Path(path).read_text(encoding="utf-8").split("\n"):
        if line.strip():
            columns = line.split("\t") if "\t" in line else line.split()
            found[-1].append((columns[0], columns[-1]))
        elif found[-1]:
            found.append([])
    return [sentence for sentence in found if sentence]


class Sentences(torch.utils.data.Dataset):
    """Encoded sentences, with the numbers of tags at the first tokens of words."""

    def __init__(self, rows, numbers, tokenizer, max_tokens):
        words = [[word for word, _ in row] for row in rows]
        self.encoded = tokenizer(words, is_split_into_words=True, truncation=True, max_length=max_tokens)
        self.labels = [self.label(row, self.encoded.word_ids(index), numbers) for index, row in enumerate(rows)]

    @staticmethod
    def label(row, owners, numbers):
        before = [None, *owners]
        return [
            numbers[row[owner][1]] if owner is not None and owner != previous else IGNORED
            for previous, owner in zip(before, owners, strict=False)
        ]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {key: values[index] for key, values in self.encoded.items()} | {"labels": self.labels[index]}


def measured(trainer, dataset, names):
    """Return the scores of entities, of the words that have a token."""
    found = trainer.predict(dataset)
    guesses, truths = [], []
    for best, label in zip(found.predictions.argmax(2), found.label_ids, strict=True):
        places = [place for place, number in enumerate(label) if number != IGNORED]
        guesses.append([names[best[place]] for place in places])
        truths.append([names[label[place]] for place in places])
    scores = {"f1": f1_score, "precision": precision_score, "recall": recall_score}
    return {name: float(score(truths, guesses)) for name, score in scores.items()}


def main():
    args = command_line("padded", "grouped").parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    rows = sentences(args.train)
    names = sorted({tag for row in rows for _, tag in row}, key=lambda tag: (tag != "O", tag))
    numbers = {name: number for number, name in enumerate(names)}
    trainer = trained(
        args,
        model=released(AutoModelForTokenClassification, args, num_labels=len(names)),
        train_dataset=Sentences(rows, numbers, tokenizer, args.max_tokens),
        data_collator=DataCollatorForTokenClassification(tokenizer),
    )
    if args.test:
        test = Sentences(sentences(args.test), numbers, tokenizer, args.max_tokens)
        print(json.dumps(measured(trainer, test, names)), flush=True)


main()

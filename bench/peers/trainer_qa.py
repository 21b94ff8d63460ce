"""Hugging Face Trainer fine-tuning on questions, by the recipe of its example script `run_qa`, written anew.

`max` pads windows to their greatest length, as the recipe does unless told not to, `padded` to the longest of a batch,
`grouped` batches windows of like length. Their loss counts padding among the places where an answer may be; `masked`
pads as `padded` does and leaves it out. Answers are compared by the rules of SQuAD 1.1.
"""

import gzip
import json
import re
import string
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from recipe import command_line, released, trained
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, DataCollatorWithPadding

N_BEST, LONGEST_ANSWER = 20, 30  # starts and ends that are combined; tokens


def questions(path):
    """Return (id, question, context, answers) of a file in SQuAD's layout."""
    data = Path(path).read_bytes()
    squad = json.loads(gzip.decompress(data) if path.endswith(".gz") else data)
    return [
        (asked["id"], asked["question"].lstrip(), paragraph["context"], asked["answers"])
        for article in squad["data"]
        for paragraph in article["paragraphs"]
        for asked in paragraph["qas"]
    ]


class Windows(torch.utils.data.Dataset):
    """Questions, each with one or more windows of its context."""

    def __init__(self, path, tokenizer, args):
        self.questions = questions(path)
        encoded = tokenizer(
            [question for _, question, _, _ in self.questions],
            [context for _, _, context, _ in self.questions],
            truncation="only_second",
            max_length=args.max_tokens,
            stride=args.stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            padding="max_length" if args.batching == "max" else False,
        )
        self.owners = encoded.pop("overflow_to_sample_mapping")
        offsets = encoded.pop("offset_mapping")
        self.offsets = [
            [pair if part == 1 else None for pair, part in zip(row, encoded.sequence_ids(window), strict=True)]
            for window, row in enumerate(offsets)
        ]
        self.encoded = encoded

    def __len__(self):
        return len(self.owners)

    def __getitem__(self, window):
        start, end = self.label(window)
        row = {key: values[window] for key, values in self.encoded.items()}
        return row | {"start_positions": start, "end_positions": end}

    def label(self, window):
        """Return the first and last token of the answer; the first token of all where the window has not all of it."""
        answer = self.questions[self.owners[window]][3][0]
        begin, end = answer["answer_start"], answer["answer_start"] + len(answer["text"])
        held = [place for place, pair in enumerate(self.offsets[window]) if pair]
        first = [place for place in held if self.offsets[window][place][0] <= begin]
        last = [place for place in held if self.offsets[window][place][1] >= end]
        return (first[-1], last[0]) if first and last else (0, 0)


def answers(windows, starts, ends):
    """Return the best answer to each question."""
    best = [(-np.inf, "")] * len(windows.questions)
    for window, owner in enumerate(windows.owners):
        offsets, context = windows.offsets[window], windows.questions[owner][2]
        for first in np.argsort(-starts[window])[:N_BEST]:
            for last in np.argsort(-ends[window])[:N_BEST]:
                if max(first, last) >= len(offsets) or offsets[first] is None or offsets[last] is None:
                    continue
                if 0 <= last - first < LONGEST_ANSWER:
                    score = starts[window][first] + ends[window][last]
                    if score > best[owner][0]:
                        best[owner] = score, context[offsets[first][0] : offsets[last][1]]
    return [text for _, text in best]


def words(text):
    """Return the words by which answers are compared: no case, no punctuation, no articles."""
    bare = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def f1(given, wanted):
    same = sum((Counter(given) & Counter(wanted)).values())
    return 2 * same / (len(given) + len(wanted)) if same else 0.0


def measured(trainer, windows):
    """Return exact match and F1, means over questions of the best over their answers."""
    starts, ends = trainer.predict(windows).predictions[:2]
    exact, overlap = [], []
    for text, (_, _, _, golds) in zip(answers(windows, starts, ends), windows.questions, strict=True):
        given, wanted = words(text), [words(gold["text"]) for gold in golds]
        exact.append(max(given == gold for gold in wanted))
        overlap.append(max(f1(given, gold) for gold in wanted))
    return {"exact_match": float(np.mean(exact)), "f1": float(np.mean(overlap))}


def leave_padding_out(model):
    """Let no answer begin or end at padding, in the loss as in predictions."""
    real = {}
    model.register_forward_pre_hook(lambda _, args, kwargs: real.update(kwargs), with_kwargs=True)

    def fill(head, args, logits):
        return logits.masked_fill(real["attention_mask"].unsqueeze(-1) == 0, torch.finfo(logits.dtype).min)

    model.qa_outputs.register_forward_hook(fill)


def main():
    parser = command_line("max", "padded", "masked", "grouped")
    parser.add_argument("--stride", type=int, required=True)
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = released(AutoModelForQuestionAnswering, args)
    if args.batching == "masked":
        leave_padding_out(model)
    trainer = trained(
        args,
        model=model,
        train_dataset=Windows(args.train, tokenizer, args),
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    if args.test:
        print(json.dumps(measured(trainer, Windows(args.test, tokenizer, args))), flush=True)


main()

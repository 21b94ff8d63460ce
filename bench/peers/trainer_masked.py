"""Hugging Face Trainer pretraining a BERT on documents of uneven lengths, as its documentation shows it.

`padded` is its default, `grouped` batches documents of like length, `joined` cuts the joined documents into full blocks
as its example script for masked language modelling does. Everything that is not the workload is the Trainer's default.
"""

import argparse
import itertools
import json
import tempfile

import numpy as np
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("tokens", help="npz file: ids of all documents end to end, offsets of each")
    parser.add_argument("tokenizer", help="tokenizer.json")
    parser.add_argument("--batching", choices=["padded", "grouped", "joined"], required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--layers", type=int, required=True)
    parser.add_argument("--width", type=int, required=True)
    parser.add_argument("--heads", type=int, required=True)
    parser.add_argument("--seq-len", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True, help="documents, or blocks if joined")
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--dropout", type=float, required=True)
    return parser.parse_args()


class Documents(torch.utils.data.Dataset):
    """Rows of ids: documents, or blocks of all of them end to end."""

    def __init__(self, args):
        with np.load(args.tokens) as stored:
            ids, offsets = stored["ids"].astype(np.int64), stored["offsets"]
        if args.batching == "joined":
            offsets = np.arange(0, len(ids), args.seq_len)
        self.rows = [ids[a:b].tolist() for a, b in itertools.pairwise(offsets)]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return {"input_ids": self.rows[index]}


class Counting(Trainer):
    """The Trainer, which also notes the tokens of a batch that are no padding."""

    def training_step(self, model, inputs, *args, **kwargs):
        self.real = int(inputs["attention_mask"].sum())
        return super().training_step(model, inputs, *args, **kwargs)


class Report(TrainerCallback):
    def __init__(self):
        self.trainer = None

    def on_step_end(self, args, state, control, **kwargs):
        print(json.dumps({"step": state.global_step, "tokens": self.trainer.real}), flush=True)


def main():
    args = arguments()
    torch.manual_seed(1)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=args.tokenizer, **SPECIAL)
    model = BertForMaskedLM(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=args.width,
            num_hidden_layers=args.layers,
            num_attention_heads=args.heads,
            intermediate_size=4 * args.width,
            max_position_embeddings=args.seq_len,
            hidden_dropout_prob=args.dropout,
            attention_probs_dropout_prob=args.dropout,
        )
    )
    with tempfile.TemporaryDirectory() as output:
        training = TrainingArguments(
            output_dir=output,
            max_steps=args.steps,
            per_device_train_batch_size=args.batch,
            learning_rate=args.lr,
            train_sampling_strategy="group_by_length" if args.batching == "grouped" else "random",
            save_strategy="no",
            report_to="none",
            use_cpu=True,
        )
        report = Report()
        trainer = Counting(
            model=model,
            args=training,
            train_dataset=Documents(args),
            data_collator=DataCollatorForLanguageModeling(tokenizer),
            callbacks=[report],
        )
        report.trainer = trainer
        trainer.train()


main()

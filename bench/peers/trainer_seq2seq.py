"""Hugging Face Seq2SeqTrainer translating, as transformers' `run_translation` example does.

`padded` is its default (each batch padded to its longest source and target), `grouped` batches sources of like length.
"""

import json
from pathlib import Path

import numpy as np
import sacrebleu
import torch
from recipe import command_line, trained
from transformers import (
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    MarianMTModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    set_seed,
)


class Pairs(torch.utils.data.Dataset):
    """Encoded sources with the ids of their targets as labels."""

    def __init__(self, rows, tokenizer, max_tokens):
        options = {"truncation": True, "max_length": max_tokens, "return_token_type_ids": False}
        self.sources = tokenizer([source for source, _ in rows], **options)["input_ids"]
        self.labels = tokenizer([target for _, target in rows], **options)["input_ids"]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        ids = self.sources[index]
        return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": self.labels[index]}


def pairs(path):
    rows = map(json.loads, Path(path).read_text(encoding="utf-8").splitlines())
    return [(row["source"], row["target"]) for row in rows]


def main():
    parser = command_line("padded", "grouped")
    parser.add_argument("--smoothing", type=float, required=True)
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    set_seed(args.seed)
    model = MarianMTModel.from_pretrained(
        args.model, dropout=args.dropout, attention_dropout=args.attention_dropout, activation_dropout=0.0
    )
    for side in (model.model.encoder, model.model.decoder):
        side.embed_positions.weight.requires_grad_(False)  # fixed, which loading forgets
    bias = model.final_logits_bias.clone()
    del model.final_logits_bias  # a buffer of transformers; Marian and Headwater learn it
    model.final_logits_bias = torch.nn.Parameter(bias)
    trainer = trained(
        args,
        of=Seq2SeqTrainer,
        arguments=Seq2SeqTrainingArguments,
        options={
            "label_smoothing_factor": args.smoothing,
            "predict_with_generate": True,
            "generation_max_length": args.max_tokens,
            "generation_num_beams": 1,
        },
        model=model,
        train_dataset=Pairs(pairs(args.train), tokenizer, args.max_tokens),
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
    )
    if args.test:
        rows = pairs(args.test)
        found = trainer.predict(Pairs(rows, tokenizer, args.max_tokens)).predictions
        texts = tokenizer.batch_decode(np.where(found < 0, tokenizer.pad_token_id, found), skip_special_tokens=True)
        print(json.dumps({"bleu": sacrebleu.corpus_bleu(texts, [[target for _, target in rows]]).score}), flush=True)


main()

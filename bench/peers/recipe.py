"""What every Trainer that fine-tunes has in common: its command line, its arguments, one JSON line a step.

Holds no task; everything that is not said here is the Trainer's default, as its documentation shows it.
"""

import argparse
import json
import tempfile
from pathlib import Path

from torch.utils.data import Subset
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed


def command_line(*batching):
    """Return the parser of the command line; `batching` names the ways to make batches that the task knows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", help="directory of a released checkpoint")
    parser.add_argument("train", help="file to learn from")
    parser.add_argument("test", help="file to be measured at the end; none if empty")
    parser.add_argument("--batching", choices=batching, required=True)
    parser.add_argument("--epochs", type=float, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--weight-decay", type=float, required=True)
    parser.add_argument("--max-tokens", type=int, required=True)
    parser.add_argument("--dropout", type=float, required=True)
    parser.add_argument("--attention-dropout", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--order", help="JSON list of the examples of the run, one after another, instead of a shuffle")
    return parser


def released(auto, args, **options):
    """Return the released model with the head of a task, which begins with new weights where the release has none."""
    set_seed(args.seed)
    return auto.from_pretrained(
        args.model, hidden_dropout_prob=args.dropout, attention_probs_dropout_prob=args.attention_dropout, **options
    )


class Report(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        print(json.dumps({"step": state.global_step}), flush=True)


class Loss(TrainerCallback):
    def on_log(self, args, state, control, logs, **kwargs):
        if "loss" in logs:
            print(json.dumps({"loss": logs["loss"], "grad_norm": logs["grad_norm"]}), flush=True)


def trained(args, train_dataset, *, of=Trainer, arguments=TrainingArguments, options=None, **parts):
    """Train; return the Trainer, given its model, data set and collator. `grouped` batches sequences of like length.

    `of` and `arguments` are the classes of the Trainer and of its arguments, `options` more of these.
    """
    sampling = "group_by_length" if args.batching == "grouped" else "random"
    if args.order:
        train_dataset, sampling = Subset(train_dataset, json.loads(Path(args.order).read_text())), "sequential"
    with tempfile.TemporaryDirectory() as output:
        training = arguments(
            output_dir=output,
            num_train_epochs=args.epochs,
            per_device_train_batch_size=args.batch,
            per_device_eval_batch_size=args.batch,
            learning_rate=args.lr,
            weight_decay=args.weight_decay,
            train_sampling_strategy=sampling,
            logging_steps=1 if args.order else 500,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=args.seed,
            use_cpu=True,
            **(options or {}),
        )
        report = Loss() if args.order else Report()
        trainer = of(args=training, train_dataset=train_dataset, callbacks=[report], **parts)
        trainer.train()
    return trainer

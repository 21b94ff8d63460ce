"""Hugging Face Trainer pretraining a GPT-2, as its documentation shows it.

Dropout is off, as in every contestant; everything else that is not the workload is the Trainer's default.
"""

import tempfile

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments
from workload import Clock, arguments, blocks


class Blocks(torch.utils.data.Dataset):
    """Fixed blocks of tokens; the model shifts its labels itself."""

    def __init__(self, ids):
        self.ids = torch.from_numpy(ids[:, :-1].copy())

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


class Report(TrainerCallback):
    """Ticks the clock; Trainer logs its loss after this callback, so losses come one step late and are left out."""

    def __init__(self):
        self.clock = Clock()

    def on_step_end(self, args, state, control, **kwargs):
        self.clock.tick(None)


def main():
    args = arguments()
    torch.manual_seed(1)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=args.vocab,
            n_positions=args.seq_len,
            n_embd=args.width,
            n_layer=args.layers,
            n_head=args.heads,
            activation_function=args.activation,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    with tempfile.TemporaryDirectory() as output:
        training = TrainingArguments(
            output_dir=output,
            max_steps=args.steps,
            per_device_train_batch_size=args.batch,
            learning_rate=args.lr,
            adam_beta2=0.95,
            weight_decay=0.1,
            lr_scheduler_type="cosine",
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            torch_compile=args.compile,
        )
        Trainer(model=model, args=training, train_dataset=Blocks(blocks(args)), callbacks=[Report()]).train()


main()

"""`python -m finetune.export RUN`: write a fine-tuned model as a directory that `transformers` and its pipelines load.

Holds the command line and what the outputs are called; names of tensors are `counterpart`'s, files `release`'s.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from finetune.counterpart import parts_of, style_of
from finetune.load import Trained, open_trained
from finetune.model.heads import Kind
from pretrain.checkpoint.fragments import FragmentReader
from pretrain.checkpoint.load import load_manifest, load_state, shapes_of
from pretrain.errors import command
from pretrain.hub.export_dir import Release, export_parser, write_release
from pretrain.hub.special_tokens import counterpart


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    description = "Write the best step of a run as a directory that Hugging Face transformers loads."
    parser = export_parser("python -m finetune.export", description, default_step="the best")
    return command(parser, export, arguments)


def export(options: argparse.Namespace) -> Path:
    """Export as the command line says and return the directory. Raises `ConfigError` for what has no counterpart."""
    trained = open_trained(options.run, options.step)
    network, kind, record = trained.network, trained.cfg.task.kind, trained.record
    _, config, special = counterpart(network, record, trained.tokenizer)
    release = Release(
        model=network,
        parts=list(parts_of(network, kind, record["vocab_size"], shapes_of(trained.module))),
        read=trained.cfg.tuning.merged(FragmentReader(trained.step, load_manifest(trained.step)["tensors"])),
        tokenizer=trained.tokenizer,
        config={**config, "architectures": [style_of(network, kind).architecture], **_outputs(trained)},
        special=special | _padding(trained.tokenizer, special),
        generates=False,
        run=record["name"],
        step=load_state(trained.step)["step"],
        tokenizer_settings={
            "model_max_length": trained.cfg.task.max_tokens,  # cut as in training
            "split_special_tokens": True,  # "[SEP]" in a text is characters, as in training
        },
    )
    out = options.out or options.run / "export"
    return write_release(release, out, dtype=options.dtype, shard_mb=options.shard_mb, overwrite=options.overwrite)


def _padding(tokenizer: Tokenizer, special: dict[str, int | None]) -> dict[str, int]:
    """Return the token that fills up a batch of texts where none is known: a decoder's that begins them, if any does.

    `transformers` finds the last token of a text as the last that is not this one, so no text may end with it.
    """
    begin = special["bos"]
    if special.get("pad") is not None or begin is None or tokenizer.encode("a").ids[-1:] == [begin]:
        return {}
    return {"pad": begin}


def _outputs(trained: Trained) -> dict[str, Any]:
    """Return what `config.json` says of the head's outputs."""
    if trained.cfg.task.kind is Kind.span:
        return {}
    names = dict(enumerate(trained.names))
    problem = getattr(trained.cfg.task, "problem", None)  # of texts; tokens have one label each
    kinds = {"single_label": "single_label_classification", "multi_label": "multi_label_classification"}
    told = {} if problem is None else {"problem_type": kinds.get(problem.value, problem.value)}
    return {"id2label": names, "label2id": {name: number for number, name in names.items()}, **told}


if __name__ == "__main__":
    sys.exit(main())

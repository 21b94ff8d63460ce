"""`python -m finetune.export RUN`: write a fine-tuned model as a directory that `transformers` and its pipelines load.

Holds the command line and the names of outputs; names of tensors are in `model/heads`, files in `hub/export_dir`.
"""

from __future__ import annotations

from pretrain.commands import start_command

if __name__ == "__main__":
    start_command()  # before the imports below, which take seconds

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.commands import command
from pretrain.settings.export_options import export_parser
from pretrain.settings.options import CommandParser
from pretrain.train.run_dir import read_config

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from finetune.load import Trained


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return command(parser(), export_run, arguments)


def parser() -> CommandParser:
    """Return the options of the command."""
    description = "Write the best step of a run as a directory that Hugging Face transformers loads."
    return export_parser("python -m finetune.export", description, default_step="the best")


def export_run(options: argparse.Namespace) -> Path:
    """Export as the command line says and return the directory. Raises `ConfigError` for a model of no family."""
    from finetune.load import open_trained  # here and below: --help and a refusal do without torch
    from finetune.model.heads import hf_tensors
    from pretrain.checkpoint.load import fragments_of, shapes_of
    from pretrain.hub.export_dir import Export, hf_model, write_export
    from pretrain.hub.model_card import Origin

    trained = open_trained(options.run, options.step)
    network, kind, record = trained.network, trained.cfg.task.kind, trained.record
    family, config, special_tokens = hf_model(network, record, trained.tokenizer)
    export = Export(
        model=network,
        tensors=list(hf_tensors(network, kind, record["vocab_size"], shapes_of(trained.module))),
        read=trained.cfg.tuning.merged(fragments_of(trained.step)),
        tokenizer=trained.tokenizer,
        config={**config, "architectures": [family.task_architecture(kind)], **_outputs(trained)},
        special_tokens=special_tokens | _padding(trained.tokenizer, special_tokens),
        generates=False,
        run=record["name"],
        step=trained.number,
        origin=Origin(step=trained.step, record=record, settings=read_config(options.run)),
        tokenizer_settings={
            "model_max_length": trained.cfg.task.max_tokens,  # cut as in training
            "split_special_tokens": True,  # "[SEP]" in a text is characters, as in training
        },
    )
    out = options.out or options.run / "export"
    return write_export(export, out, dtype=options.dtype, shard_mb=options.shard_mb, overwrite=options.overwrite)


def _padding(tokenizer: Tokenizer, special_tokens: dict[str, int | None]) -> dict[str, int]:
    """Return a padding token where the tokenizer has none: of a decoder the token that begins texts, if there is one.

    `transformers` takes the last token that is not padding as the last of a text, so no text may end with this one.
    """
    begin = special_tokens["bos"]
    if special_tokens.get("pad") is not None or begin is None or tokenizer.encode("a").ids[-1:] == [begin]:
        return {}
    return {"pad": begin}


def _outputs(trained: Trained) -> dict[str, Any]:
    """Return what `config.json` says of the head's outputs."""
    from pretrain.hub.family import HeadKind

    if trained.cfg.task.kind is HeadKind.span:
        return {}
    names = dict(enumerate(trained.names))
    problem = getattr(trained.cfg.task, "problem", None)  # of texts; tokens have one label each
    kinds = {"single_label": "single_label_classification", "multi_label": "multi_label_classification"}
    problem_type = {} if problem is None else {"problem_type": kinds.get(problem.value, problem.value)}
    return {"id2label": names, "label2id": {name: number for number, name in names.items()}, **problem_type}


if __name__ == "__main__":
    sys.exit(main())

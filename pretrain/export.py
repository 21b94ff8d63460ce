"""`python -m pretrain.export RUN`: write a run's weights as a directory that `transformers` loads.

Holds the command line and the choice of weights; names and settings are in `hub/family`, files in `hub/export_dir`.
"""

from __future__ import annotations

from pretrain.commands import start_command

if __name__ == "__main__":
    start_command()  # before the imports below, which take seconds

import argparse
import sys
from pathlib import Path

from pretrain.commands import command
from pretrain.settings.export_options import export_parser
from pretrain.settings.options import CommandParser
from pretrain.train.run_dir import read_config, read_record


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return command(parser(), export_run, arguments)


def parser() -> CommandParser:
    """Return the options of the command."""
    description = "Write the weights of a run as a directory that Hugging Face transformers loads."
    return export_parser("python -m pretrain.export", description, default_step="the newest that verifies")


def export_run(options: argparse.Namespace) -> Path:
    """Export as the command line says and return the directory. Raises `ConfigError` for a model of no family."""
    from pretrain.checkpoint.commit import step_number  # here and below: --help and a refusal do without torch
    from pretrain.checkpoint.load import check_architecture, fragments_of, shapes_of
    from pretrain.distributed.world import World
    from pretrain.hub.export_dir import Export, hf_model, write_export
    from pretrain.hub.model_card import Origin
    from pretrain.hub.special_tokens import set_template
    from pretrain.run import reopened
    from pretrain.train.trained_run import step_of, tokenizer_of

    network, objective, module = reopened(options.run)
    record = read_record(options.run, "vocab_size", "document_frame", "name")
    tokenizer = tokenizer_of(options.run)
    family, config, special_tokens = hf_model(network, record, tokenizer)
    step = step_of(options.run, World.alone(), options.step)
    reader = fragments_of(step)
    shapes = shapes_of(module)
    check_architecture(step, shapes, reader.weight_shapes())
    beside = list(family.objective_tensors(shapes))
    tensors = [*family.model_tensors(network, record["vocab_size"], "model."), *beside]
    if left_out := sorted(shapes.keys() - {tensor.ours for tensor in tensors}):
        print(f"left out, as {family.architecture} has no place for them: {', '.join(left_out)}", file=sys.stderr)
    if objective.wants_special_tokens:
        set_template(tokenizer, record["document_frame"], getattr(network, "token_types", 0))
    export = Export(
        model=network,
        tensors=tensors,
        read=reader,
        tokenizer=tokenizer,
        config=config | ({"architectures": [family.pretraining]} if beside else {}),
        special_tokens=special_tokens,
        generates=network.kind.generates,
        run=record["name"],
        step=step_number(step),
        origin=Origin(step=step, record=record, settings=read_config(options.run)),
    )
    out = options.out or options.run / "export"
    return write_export(export, out, dtype=options.dtype, shard_mb=options.shard_mb, overwrite=options.overwrite)


if __name__ == "__main__":
    sys.exit(main())

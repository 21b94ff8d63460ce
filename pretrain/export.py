"""`python -m pretrain.export RUN`: write a run's weights as a directory that `transformers` loads.

Holds the command line; the directory is `release`'s, names and settings `models/hub`'s, and what can be exported is
`counterpart`'s to say.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pretrain.checkpoint.fragments import FragmentReader
from pretrain.checkpoint.load import check_architecture, load_manifest, load_state, saved_step, shapes_of
from pretrain.compose import compose_run
from pretrain.distributed.world import World
from pretrain.errors import command
from pretrain.hub.export_dir import Release, export_parser, write_release
from pretrain.hub.special_tokens import counterpart, frame
from pretrain.run import build_module
from pretrain.tokenizer.base import load_tokenizer
from pretrain.train.run_dir import read_record


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    description = "Write the weights of a run as a directory that Hugging Face transformers loads."
    parser = export_parser("python -m pretrain.export", description, default_step="the newest that verifies")
    return command(parser, export, arguments)


def export(options: argparse.Namespace) -> Path:
    """Export as the command line says and return the directory. Raises `ConfigError` for what has no counterpart."""
    cfg, record = compose_run(options.run), read_record(options.run)
    tokenizer = load_tokenizer(options.run / "tokenizer.json")
    family, network, special = counterpart(cfg.model, record, tokenizer)
    step = saved_step(options.run / "checkpoints", World.alone(), options.step)
    reader = FragmentReader(step, load_manifest(step)["tensors"])
    shapes = shapes_of(build_module(cfg, record["vocab_size"]))
    check_architecture(step, shapes, reader.weight_shapes())
    beside = list(family.parts_beside(shapes))
    parts = [*family.parts(cfg.model, record["vocab_size"], "model."), *beside]
    if left_out := sorted(shapes.keys() - {part.ours for part in parts}):
        print(f"left out, as {family.architecture} has no place for them: {', '.join(left_out)}", file=sys.stderr)
    if not cfg.model.causal:
        frame(tokenizer, record["document_frame"], cfg.model.token_types)
    release = Release(
        model=cfg.model,
        parts=parts,
        read=reader,
        tokenizer=tokenizer,
        config=network | ({"architectures": [family.pretraining]} if beside else {}),
        special=special,
        generates=cfg.model.causal,
        run=record["name"],
        step=load_state(step)["step"],
    )
    out = options.out or options.run / "export"
    return write_release(release, out, dtype=options.dtype, shard_mb=options.shard_mb, overwrite=options.overwrite)


if __name__ == "__main__":
    sys.exit(main())

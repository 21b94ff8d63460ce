"""`python -m pretrain.sample RUN`: continue a prompt with a pretrained model.

Holds the command line and the loading of a run; sampling itself is in `generate`.
"""

from __future__ import annotations

from pretrain.commands import start_command

if __name__ == "__main__":
    start_command()  # before the imports below, which take seconds

import argparse
import sys
from pathlib import Path

import torch

from pretrain.checkpoint.load import restore_weights
from pretrain.commands import command
from pretrain.distributed.world import World
from pretrain.errors import ConfigError
from pretrain.models.decoder import Decoder
from pretrain.models.generate import Sampler, generate
from pretrain.objectives.base import Objective
from pretrain.run import reopened
from pretrain.settings.plugins import add_plugins_option
from pretrain.train.run_dir import read_record
from pretrain.train.trained_run import step_of, tokenizer_of


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return command(_parser(), sample, arguments)


def load_run(run: Path) -> Objective:
    """Return a run's module with the weights of its newest verified checkpoint, on the CPU."""
    _, _, module = reopened(run)
    restore_weights(step_of(run, World.alone()), module)
    return module.eval()


def sample(options: argparse.Namespace) -> None:
    """Print the continuations, each after the prompt that it follows."""
    model = load_run(options.run).model
    if not isinstance(model, Decoder):
        raise ConfigError(f"{options.run}: its model is a {type(model).__name__}; only decoders generate text")
    prefix, suffix = read_record(options.run, "document_frame")["document_frame"]
    tokenizer = tokenizer_of(options.run)
    prompt = torch.tensor([prefix + tokenizer.encode(options.prompt, add_special_tokens=False).ids])
    generator = torch.Generator().manual_seed(options.seed)
    sampler = Sampler(temperature=options.temperature, top_k=options.top_k, top_p=options.top_p, generator=generator)
    stop_id = next(iter(suffix or prefix), None)  # None where nothing marks the ends of documents
    drawn = generate(model, prompt.repeat(options.samples, 1), sampler, max_tokens=options.max_tokens, stop_id=stop_id)
    for continuation in torch.stack(list(drawn), dim=1).tolist():
        print(options.prompt + tokenizer.decode(continuation), end="\n\n")


def _parser() -> argparse.ArgumentParser:
    description = "Let a pretrained model continue a prompt."
    parser = argparse.ArgumentParser(prog="python -m pretrain.sample", description=description)
    parser.add_argument("run", type=Path, help="run directory, e.g. runs/demo")
    add_plugins_option(parser)
    parser.add_argument("--prompt", default="", help="text to continue; without one the model begins a document")
    parser.add_argument("--max-tokens", type=int, default=128, help="tokens to add at most (default %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 = always the likeliest (default %(default)s)")
    parser.add_argument("--top-k", type=int, default=None, help="draw from the k likeliest tokens only")
    nucleus = "draw from the likeliest tokens that hold this share of the probability (default %(default)s)"
    parser.add_argument("--top-p", type=float, default=0.95, help=nucleus)
    parser.add_argument("--samples", type=int, default=1, help="continuations (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="the same seed draws the same text (default %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())

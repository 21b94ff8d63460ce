"""`python -m pretrain.sample MODEL`: continue prompts with a pretrained model.

Holds the command line and the reading of prompts; sampling itself is in `trained.model`.
"""

from __future__ import annotations

from pretrain.commands import start_command

if __name__ == "__main__":
    start_command()  # before the imports below, which take seconds

import argparse
import sys
from pathlib import Path

from pretrain.commands import command
from pretrain.data.sources.bad_records import BadRecordError
from pretrain.data.sources.documents import lines
from pretrain.data.sources.readers import JSON_LINES, file_format, json_object, open_bytes, value_at
from pretrain.errors import ConfigError, DataError, check
from pretrain.settings.options import CommandParser
from pretrain.settings.plugins import add_plugins_option
from pretrain.tracking.jsonl import to_json


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return command(parser(), sample, arguments)


def sample(options: argparse.Namespace) -> None:
    """Print the continuations, each after the prompt that it follows, or one JSON object for each."""
    from pretrain.models.generation.beam import BeamSearch  # these import torch, which --help and a refusal do without
    from pretrain.models.generation.sampling import Sampler
    from pretrain.trained.model import load

    rule = "belongs to beam search; give --beams, too"
    check(options.beams or not options.no_repeat_ngram, "--no-repeat-ngram", options.no_repeat_ngram, rule)
    how = Sampler(**{name: getattr(options, name) for name in ("temperature", "top_k", "top_p", "min_p", "seed")})
    if options.beams is not None:
        how = BeamSearch(beams=options.beams, no_repeat_ngram=options.no_repeat_ngram)
    prompts = [*options.prompt, *(_prompts(options.prompts, options.field) if options.prompts else [])] or [""]
    model = load(options.run, step=options.step)
    kind = {
        "max_tokens": options.max_tokens,
        "samples": options.samples,
        "stop": options.stop,
        "markup": options.markup,
    }
    found = model.continued(prompts, how, **kind)
    continues = model.network.kind.generates  # else the prompt is a source, and no beginning
    encoding = sys.stdout.encoding or "utf-8"
    escaped = not encoding.lower().startswith("utf")  # else a reader would not find JSON, which is UTF-8
    for prompt, continuations in zip(prompts, found, strict=True):
        for text in continuations:
            record = {"step": model.step, "prompt": prompt, "continuation": text}
            shown = f"{prompt if continues else ''}{text}\n"
            print(to_json(record, ensure_ascii=escaped) if options.json else shown, flush=True)


def _prompts(path: Path, field: str) -> list[str]:
    """Return the prompts of a file, one a line, or of JSON lines the texts of a field. Blank lines are left out.

    Raises `ConfigError` for a file without any, `DataError` for one that cannot be read.
    """
    of_json, prompts, blank = file_format(str(path)) in JSON_LINES, [], 0
    with open_bytes(str(path)) as stream:
        for number, line in enumerate(lines(stream, str(path), 0, None), 1):
            text = line.data.decode(errors="replace").removeprefix("\ufeff")
            if text.strip():
                prompts.append(_value(text, field, f"{path}: line {number}") if of_json else text)
            else:
                blank += 1
    if not prompts:
        raise ConfigError(f"{path}: holds no prompt; write one a line")
    if blank:
        print(f"{path}: {blank} blank lines left out", file=sys.stderr)
    return prompts


def _value(text: str, field: str, place: str) -> str:
    try:
        value = value_at(json_object(text), field)
    except BadRecordError as error:
        raise DataError(f"{place}: {error.reason} ({error}); mend the line") from None
    except KeyError:
        raise ConfigError(f"{place}: no key {field!r}; name that of the prompts with --field") from None
    if not isinstance(value, str):
        raise DataError(f"{place}: {field!r} is {value!r:.40}, expected a string; mend the line")
    return value


def parser() -> CommandParser:
    """Return the options of the command."""
    parser = CommandParser(
        prog="python -m pretrain.sample",
        description="Let a pretrained model continue prompts.",
        example="python -m pretrain.sample runs/demo --prompt 'Once upon a time'",
    )
    model = "run directory, e.g. runs/demo; also an export, a Hugging Face directory or org/name on the hub"
    parser.add_argument("run", metavar="MODEL", help=model)
    add_plugins_option(parser)
    parser.add_argument("--step", type=int, default=None, help="a saved step of a run (default: the newest)")
    one = "text to continue, or source of an encoder-decoder; may be repeated; without one a document begins"
    parser.add_argument("--prompt", action="append", default=[], help=one)
    several = "file of prompts, one a line, or JSON lines (.jsonl)"
    parser.add_argument("--prompts", type=Path, metavar="FILE", help=several)
    parser.add_argument("--field", default="prompt", help="key of the prompts in JSON lines (default %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=128, help="tokens to add at most (default %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 = always the likeliest (default %(default)s)")
    parser.add_argument("--top-k", type=int, default=None, help="draw from the k likeliest tokens only")
    nucleus = "draw from the likeliest tokens that hold this share of the probability (default %(default)s)"
    parser.add_argument("--top-p", type=float, default=0.95, help=nucleus)
    least = "draw from tokens that have this share of the likeliest one's probability only"
    parser.add_argument("--min-p", type=float, default=None, help=least)
    beams = "search for the likeliest text with so many under way, in place of draws"
    parser.add_argument("--beams", type=int, default=None, help=beams)
    ngram = "with --beams: no so many tokens in a row stand twice (default: any may)"
    parser.add_argument("--no-repeat-ngram", type=int, metavar="N", default=0, help=ngram)
    stop = "string that a text ends before; may be repeated"
    parser.add_argument("--stop", action="append", metavar="TEXT", default=[], help=stop)
    marks = "read special tokens that are written in prompts, such as <extra_id_0>, and print those of the texts"
    parser.add_argument("--markup", action="store_true", help=marks)
    parser.add_argument("--samples", type=int, default=1, help="continuations of each prompt (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="the same seed draws the same text (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="print a JSON object for each continuation, one a line")
    return parser


if __name__ == "__main__":
    sys.exit(main())

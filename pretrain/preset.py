"""`python -m pretrain.preset SOURCE --out DIR`: write an experiment that goes on from a trained model.

Holds the command line and the file; what is known of a source is `source`'s to say.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from pretrain.compose import CONF
from pretrain.data.loader import DataConfig
from pretrain.data.packing import Packing
from pretrain.errors import ConfigError, check, command
from pretrain.hub.download import is_hub_name
from pretrain.init_from import Source, find_source, is_released, open_source
from pretrain.registry import choices
from pretrain.tokenizer.base import load_tokenizer
from pretrain.train.run_dir import RUN_NAME, RUN_NAME_RULE, plain

_COMMENTS = """\
# @package _global_
# Goes on from a trained model. Written by python -m pretrain.preset; bring your own corpus:
# python -m pretrain --config-dir {out} experiment={name} data=text data.sources.text.paths=[...]
# tokenizer: that of the source, whose embedding has {rows:,} rows; its frame of documents and its mask by {tokens}.
# model: by its {settings}, where it differs from the defaults of model={choice}.
# data.seq_len: yours to choose, up to model.max_seq_len, which stays that of the source.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return command(_parser(), lambda options: write(options.source, options.out, options.name), arguments)


def write(name_or_place: str, out: Path, name: str | None = None) -> Path:
    """Write the experiment `name` (else `from-` and the source's own) into a directory of configurations.

    Returns the file. Raises `ConfigError` for names that would lead to something else, and for a file that exists;
    for the source whatever `find_source` and `open_source` do.
    """
    init_from = find_source(name_or_place, first=True)
    source = open_source(init_from)
    if is_hub_name(init_from):
        own = init_from.partition("@")[0].rpartition("/")[2]
    else:
        init_from, own = str(source.path.absolute()), source.path.absolute().name
    name = name or f"from-{own}"
    _check_name(name, source)
    file = out / "experiment" / f"{name}.yaml"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("x", encoding="utf-8") as written:
            written.write(_experiment(name, init_from, source, out))
    except FileExistsError:
        raise ConfigError(f"{file}: exists; choose another --name, or delete it") from None
    except OSError as error:
        raise ConfigError(f"--out={out}: cannot be written ({error}); name another directory") from None
    return file


def _check_name(name: str, source: Source) -> None:
    """Refuse names that `experiment=` or `run.name=` would take for something that is there already."""
    check(RUN_NAME.fullmatch(name) is not None, "--name", name, RUN_NAME_RULE)
    shipped = CONF / "experiment" / f"{name}.yaml"
    check(not shipped.exists(), "--name", name, f"experiment={name} would find {shipped}; choose another")
    own = None if is_released(source.path) else source.path.absolute().name
    check(name != own, "--name", name, f"a run of that name would resume {source.path}; choose another")


def _experiment(name: str, init_from: str, source: Source, out: Path) -> str:
    """Return the text of the experiment."""
    model = source.model
    released = is_released(source.path)
    _, choice = choices()[type(model)]
    comments = _COMMENTS.format(
        out=out,
        name=name,
        tokens=source.tokenizer.name if released else "run.json",
        settings="config.json" if released else "config.yaml",
        choice=choice,
        rows=source.vocab_size,
    )
    chosen = {"tokenizer": "file", "model": choice, "objective": "causal_lm" if model.causal else "masked_lm"}
    packing = {} if model.causal else {"packing": Packing.windows.value}
    settings = {
        "defaults": [{f"override /{group}": node} for group, node in chosen.items()],
        "run": {"name": name},
        "init_from": init_from,
        "tokenizer": {"path": str(source.tokenizer.absolute()), **_roles(source)},
        "data": {"seq_len": min(DataConfig.seq_len, model.max_seq_len), **packing},
        "model": _changed(model),
    }
    return comments + OmegaConf.to_yaml(OmegaConf.create(settings))


def _roles(source: Source) -> dict[str, Any]:
    """Return the settings of the tokens that are no text, as far as they are known."""
    name_of = load_tokenizer(source.tokenizer).id_to_token
    mask = {} if source.mask is None else {"mask": name_of(source.mask)}
    if source.frame is None:
        return mask
    prefix, suffix = ([name_of(token) for token in ids] for ids in source.frame)
    return {"prefix": prefix, "suffix": suffix, **mask}


def _changed(model: Any) -> dict[str, Any]:
    """Return the settings of a model that differ from the defaults of its dataclass, or have none."""
    settings = plain(model)
    return {field.name: settings[field.name] for field in fields(model) if getattr(model, field.name) != field.default}


def _parser() -> argparse.ArgumentParser:
    description = "Write an experiment that goes on from a trained model, with its network and its tokenizer."
    parser = argparse.ArgumentParser(prog="python -m pretrain.preset", description=description)
    parser.add_argument("source", help="a run, a Hugging Face directory, or org/name on the hub")
    parser.add_argument("--out", type=Path, required=True, help="directory of configurations, for --config-dir")
    parser.add_argument("--name", default=None, help="of the experiment and its run (default: from-SOURCE)")
    return parser


if __name__ == "__main__":
    sys.exit(main())

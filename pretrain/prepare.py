"""`python -m pretrain.prepare`: turn the sources of a configuration into corpora, and print what they hold.

Holds the command only; `pretrain.data.prepare.build` does the work.

Checking a whole configuration needs torch, preparing does not: the process that has checked it is replaced (`execv`) by
one that never imports torch, which saves 200 MB. It runs this module, too, so nothing heavy is imported at its top.
"""

from __future__ import annotations

from pretrain.commands import start_command

if __name__ == "__main__":
    start_command()  # before the imports below, which take seconds

import importlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pretrain.commands import StopRequest, exit_code_of, signals_held

if TYPE_CHECKING:
    from pretrain.config import PretrainConfig
    from pretrain.data.manifest import Manifest
    from pretrain.data.prepare.build import Share
    from pretrain.data.prepare.config import PrepareConfig
    from pretrain.data.sources.base import SourceConfig
    from pretrain.tokenizer.base import TokenizerConfig

_PLAN = "--plan="  # followed by the file descriptor of a plan


def hand_over(cfg: PretrainConfig) -> None:
    """Become a fresh process that prepares what the configuration names, if its objective fits the tokenizer."""
    cfg.check_tokenizer()
    with plan_file(cfg.data.sources, cfg.tokenizer, cfg.data.prepare, cfg.data.seq_len) as file:
        os.set_inheritable(file.fileno(), True)
        with signals_held():  # until the new process can handle them
            os.execv(sys.executable, [sys.executable, *arguments(file)])


@contextmanager
def plan_file(
    sources: dict[str, SourceConfig], tokenizer: TokenizerConfig, cfg: PrepareConfig, seq_len: int = 1
) -> Iterator[IO[str]]:
    """Open a file without a name that says what to prepare."""
    plan = {
        "sources": {name: _packed(source) for name, source in sources.items()},
        "tokenizer": _packed(tokenizer),
        "prepare": _packed(cfg),
        "seq_len": seq_len,
    }
    with tempfile.TemporaryFile("w+", encoding="utf-8") as file:
        json.dump(plan, file)
        file.flush()
        yield file


def arguments(plan: IO[str]) -> list[str]:
    """Return the arguments with which Python carries out a plan that it inherits as an open file."""
    return ["-m", "pretrain.prepare", f"{_PLAN}{plan.fileno()}"]


def carry_out(plan: dict[str, Any]) -> None:
    """Prepare what is not prepared yet, verify it if asked to, and print what the corpora hold; or do one part."""
    from pretrain.data.manifest import Manifest
    from pretrain.data.prepare.build import prepare, prepare_share, verify

    sources = {name: _unpacked(source) for name, source in plan["sources"].items()}
    tokenizer, cfg, seq_len = _unpacked(plan["tokenizer"]), _unpacked(plan["prepare"]), plan["seq_len"]
    if cfg.parts > 1:
        for name, share in prepare_share(sources, tokenizer, cfg, seq_len=seq_len).items():
            print(share_summary(name, share), flush=True)
        return
    for name, directory in prepare(sources, tokenizer, cfg, seq_len=seq_len).items():
        manifest = verify(directory) if cfg.verify else Manifest.load(directory)
        print(summary(name, directory, manifest), flush=True)


def summary(name: str, directory: Path, manifest: Manifest) -> str:
    """Return what a corpus holds: a line for each split, one for the tokenizer, one for what was left out."""
    lines = [f"{name}: {directory}"]
    for split, part in manifest.splits.items():
        stored = sum(shard.size for shard in part.shards)
        lines.append(
            f"  {split:<10}  {part.documents:,} documents, {part.text_bytes:,} bytes of text, {part.tokens:,} tokens "
            f"in {len(part.shards)} shards of {stored:,} bytes"
        )
    tokenizer = f"{manifest.vocab_size:,} tokens ({manifest.dtype}), SHA-256 {manifest.tokenizer_sha256:.16}"
    left_out = ", ".join(f"{reason} {count:,}" for reason, count in manifest.skipped.items()) or "nothing"
    return "\n".join([*lines, f"  tokenizer   {tokenizer}", f"  left out or mended: {left_out}"])


def share_summary(name: str, share: Share | None) -> str:
    """Return which units of a corpus a part has done, and what to run next."""
    if share is None:
        return f"{name}: prepared already, nothing is left for a part"
    numbers = [str(number) for number in share.numbers]
    if len(numbers) > 12:
        numbers[3:-1] = ["..."]
    units = f"units {', '.join(numbers)} of {share.units} done" if numbers else f"none of its {share.units} units"
    return (
        f"{name}: {units}, with other parts {share.finished} so far; when all parts have ended, "
        "the same command without data.prepare.parts and data.prepare.part commits"
    )


def _packed(config: Any) -> dict[str, Any]:
    """Return a configuration dataclass as JSON values, with its class."""
    from pretrain.registry import plain

    return {"module": type(config).__module__, "class": type(config).__name__, "values": plain(config)}


def _unpacked(packed: dict[str, Any]) -> Any:
    """Return the configuration dataclass that `_packed` took apart."""
    from omegaconf import OmegaConf

    kind = getattr(importlib.import_module(packed["module"]), packed["class"])
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), packed["values"]))


def main() -> None:
    """Check the configuration of the command line, or carry out a plan that was made from one."""
    if not sys.argv[-1].startswith(_PLAN):
        from pretrain.compose import hydra_command

        hydra_command(hand_over)
    with os.fdopen(int(sys.argv[-1].removeprefix(_PLAN)), encoding="utf-8") as file:
        file.seek(0)
        plan = json.load(file)
    with StopRequest("stopped; units that are finished are kept, and the same command goes on from them"):
        code = exit_code_of(lambda: carry_out(plan))
    sys.exit(code)


if __name__ == "__main__":
    main()

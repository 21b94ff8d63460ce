"""Checks of what a run reads: corpora, a task's files, the weights to start from; the same on all hosts.

Holds no rule about corpora or weights; they are opened by the code that a run opens them with.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from launch.doctor.base import Check, Finding, Level, Subject, in_bytes
from pretrain.checkpoint.commit import step_names
from pretrain.data.sources.locations import is_file, typed_name
from pretrain.errors import ConfigError
from pretrain.files import hash_file
from pretrain.hub.download import is_hub_name
from pretrain.train.agreement import check_agreement

Contents = dict[str, str]
"""The name of an input -> what it holds, with a hash; "" where the run itself will get it at its start."""


def _corpora(subject: Subject) -> Contents:
    """Open the corpora. Raises `ConfigError` for a source without files, `DataError` for a damaged corpus."""
    if subject.program != "pretrain":
        return {}
    from pretrain.data.corpus import Corpus
    from pretrain.data.manifest import Manifest
    from pretrain.data.prepare.cache_key import corpus_directories, texts_of

    data, found = subject.cfg.data, {}
    data.prepare.check_whole()
    texts = texts_of(data.sources)
    for name, directory in corpus_directories(data.sources, texts, subject.cfg.tokenizer, data.prepare).items():
        found[f"corpus {name}"] = ""
        if name not in texts or (directory / "manifest.json").exists():
            manifest = Manifest.load(directory)
            for split in manifest.splits:
                Corpus.open(directory, split)  # checks the size of every file and reads its header
            tokens = manifest.splits["train"].tokens
            about = f"{tokens:,} tokens to train on in {directory}, fingerprint {manifest.fingerprint:.16}"
            found[f"corpus {name}"] = about
    return found


def _task_files(subject: Subject) -> Contents:
    """Hash the files of a task; data sets on the hub are left to the run. Raises `ConfigError` for a missing file."""
    found = {}
    for key in ("train", "validation") if subject.program == "finetune" else ():
        name = typed_name(getattr(subject.cfg.task, key), f"task.{key}")
        path = Path(name)
        if path.is_file():
            found[f"task.{key}={name}"] = f"{in_bytes(path.stat().st_size)}, SHA-256 {hash_file(path):.16}"
        elif is_file(name) or path.is_dir() or is_hub_name(name.partition(":")[0]):
            found[f"task.{key}={name}"] = ""
        else:
            raise ConfigError(f"task.{key}={name}: no such file; name one, or a data set as org/name:split")
    return found


def _check(name: str, look: Callable[[Subject], Contents], if_absent: str) -> Check:
    """Return the check of inputs that must be the same on all hosts; `if_absent` is the warning for those to come."""

    def judge(subject: Subject, answers: list[Contents]) -> list[Finding]:
        found = answers[0].items()
        present = [Finding(Level.ok, f"{what}: {content} on all hosts") for what, content in found if content]
        return present + [Finding(Level.warning, f"{what}: {if_absent}") for what, content in found if not content]

    def agree(subject: Subject, contents: Contents) -> None:
        check_agreement({what: content or "not there yet" for what, content in contents.items()}, subject.world)

    return Check(name, look, judge, agree, per_host=True)


def _init_from(subject: Subject) -> str | None:
    """Return what is known of `init_from` here. Raises what the run would raise; asks no hub."""
    cfg = subject.cfg
    if not cfg.init_from:
        return None
    if step_names(cfg.run.directory / "checkpoints"):
        return f"init_from={cfg.init_from}: not read, as the run resumes from its own checkpoint"
    if is_hub_name(cfg.init_from):
        return f"init_from={cfg.init_from}: a name on the hub, which rank 0 downloads at the start"
    from pretrain.trained.source import find_source

    find_source(cfg.init_from, first=False)
    return f"init_from={cfg.init_from}: there, on all hosts"


CHECKS = [
    _check("corpora", _corpora, "will be prepared at start; prepare before with python -m pretrain.prepare"),
    _check("task files", _task_files, "a data set, which is not looked at here; the run loads it at its start"),
    Check("init_from", _init_from, per_host=True),
]

"""Checks of what a run reads: corpora, the files of a task, the weights that it starts from; alike on all hosts.

Holds no reading of its own but hashes of files; what a corpus or a source must be is their own to say.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from launch.doctor.base import Check, Finding, Level, Subject, grouped, in_bytes
from pretrain.checkpoint.commit import step_names
from pretrain.errors import ConfigError, DataError
from pretrain.hub.download import is_hub_name


def _corpora(subject: Subject) -> dict[str, list[str]] | None:
    """Return, for each source, the fingerprint of its corpus ("" where that is still to be prepared) and some words.

    Raises `ConfigError` for a source without files, `DataError` for a damaged corpus.
    """
    if subject.program != "pretrain" or not subject.speaks:
        return None
    from pretrain.data.corpus import Corpus
    from pretrain.data.manifest import Manifest
    from pretrain.data.prepare.cache_key import corpus_directories, texts_of

    data = subject.cfg.data
    data.prepare.check_whole()
    texts = texts_of(data.sources)
    found = {}
    for name, directory in corpus_directories(data.sources, texts, subject.cfg.tokenizer, data.prepare).items():
        if name in texts and not (directory / "manifest.json").exists():
            inputs = texts[name].inputs
            size = sum(entry.size for entry in inputs)
            found[name] = ["", f"{size:,} bytes of text in {len(inputs):,} files"]
            continue
        manifest = Manifest.load(directory)
        for split in manifest.splits:
            Corpus.open(directory, split)  # the sizes of all files, and their heads
        tokens = manifest.splits["train"].tokens
        found[name] = [manifest.fingerprint, f"{tokens:,} tokens to train on in {directory}"]
    return found


def _judge_corpora(subject: Subject, answers: list[dict[str, list[str]] | None]) -> list[Finding]:
    seen = [(number, answer) for number, answer in enumerate(answers) if answer is not None]
    findings = []
    for name in seen[0][1] if seen else []:
        ranks = [number for number, _ in seen]
        variants = grouped([answer[name][0] for _, answer in seen])
        if len(variants) > 1:
            told = "; ".join(
                f"{fingerprint[:16] or 'nothing'} on {subject.named([ranks[place] for place in places])}"
                for fingerprint, places in variants
            )
            fix = "set data.prepare.root on a file system that all hosts share, or copy the corpus directory"
            text = f"{name} is not the same everywhere: {told}; {fix}"
            findings.append(Finding("corpora", Level.failed, text, DataError.exit_code))
            continue
        fingerprint, words = seen[0][1][name]
        if fingerprint:
            text = f"{name}: {words}, fingerprint {fingerprint[:16]} on all hosts"
            findings.append(Finding("corpora", Level.ok, text))
        else:
            text = f"{name} will be prepared at start: {words}; prepare before with python -m pretrain.prepare"
            findings.append(Finding("corpora", Level.warning, text))
    return findings


def _task_files(subject: Subject) -> dict[str, list[Any]] | None:
    """Return size and SHA-256 of each file of a task; of a name on the hub, nothing but the name."""
    if subject.program != "finetune" or not subject.speaks:
        return None
    found: dict[str, list[Any]] = {}
    for key in ("train", "validation"):
        name = getattr(subject.cfg.task, key)
        path = Path(name).expanduser()
        if path.is_file():
            with path.open("rb") as file:
                found[key] = [name, path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()]
        elif path.is_dir() or is_hub_name(name.partition(":")[0]):
            found[key] = [name, None, None]
        else:
            raise ConfigError(f"task.{key}={name}: no such file; name one, or a data set as org/name:split")
    return found


def _judge_task_files(subject: Subject, answers: list[dict[str, list[Any]] | None]) -> list[Finding]:
    seen = [(number, answer) for number, answer in enumerate(answers) if answer is not None]
    findings = []
    for key, (name, size, sha256) in (seen[0][1] if seen else {}).items():
        ranks = [number for number, _ in seen]
        variants = grouped([answer[key] for _, answer in seen])
        if len(variants) > 1:
            told = "; ".join(
                f"{other_size} bytes, SHA-256 {other_sha256:.16} on {subject.named([ranks[place] for place in places])}"
                for (_, other_size, other_sha256), places in variants
            )
            text = f"task.{key}={name} is not the same everywhere: {told}; give all hosts one copy"
            findings.append(Finding("task files", Level.failed, text, DataError.exit_code))
        elif size is None:
            text = f"task.{key}={name}: a data set, which is not looked at here; the run loads it at its start"
            findings.append(Finding("task files", Level.warning, text))
        else:
            text = f"task.{key}={name}: {in_bytes(size)}, SHA-256 {sha256:.16} on all hosts"
            findings.append(Finding("task files", Level.ok, text))
    return findings


def _source(subject: Subject) -> str | None:
    """Return what is known of `init_from` here. Raises what the run would raise; asks no hub."""
    cfg = subject.cfg
    if not subject.speaks or not cfg.init_from:
        return None
    if step_names(cfg.run.directory / "checkpoints"):
        return "not read: the run resumes from its own checkpoint"
    if is_hub_name(cfg.init_from):
        return "a name on the hub, which rank 0 fetches at the start"
    from pretrain.init_from import find_source

    find_source(cfg.init_from, first=False)
    return "there, on all hosts"


def _judge_source(subject: Subject, answers: list[str | None]) -> list[Finding]:
    told = [answer for answer in answers if answer is not None]
    if not told:
        return []
    return [Finding("init_from", Level.ok, f"init_from={subject.cfg.init_from}: {told[0]}")]


CHECKS = [
    Check("corpora", _corpora, _judge_corpora),
    Check("task files", _task_files, _judge_task_files),
    Check("init_from", _source, _judge_source),
]

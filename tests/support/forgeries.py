"""Corruptions and forgeries of corpora, checkpoints and run directories, drawn from a seed, and what becomes of each.

    python -m forgeries 300 [FIRST]        from this folder

A forgery changes a copy of a corpus and two runs, one of pretraining and one of fine-tuning. A command then uses it as
a user would, in this process. Its outcome is one of

    same     all that it leaves or prints is what it does with the untouched copy
    said     the same, or not, with a warning that says what was lost, passed over or changed
    refused  a named error, and nothing of the run was written
    wrong    anything else: another result without a word, a traceback, a write through a link
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import pickle
import random
import shutil
import sys
import tempfile
import traceback
import zlib
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import numpy as np
from corpora import write_corpus
from run_directories import TEXTS
from safetensors import safe_open
from tokenizers import Tokenizer

from finetune import export as finetune_export
from finetune.config import FINETUNE
from finetune.predict import main as predict
from finetune.report.__main__ import main as finetune_report
from finetune.run import finetune
from launch.table import main as table
from pretrain import export, sample
from pretrain.commands import exit_code_of
from pretrain.compose import compose
from pretrain.data.manifest import PAGE_BYTES
from pretrain.report.__main__ import main as report
from pretrain.run import pretrain
from pretrain.tokenizer.bpe import BpeTokenizer

CORPUS, RUN, TUNED = Path("corpus"), Path("runs/first"), Path("runs/tuned")
STEPS = 4  # of the run that is tampered with; one that resumes takes two more
CANARY = Path("canary")  # a file that nothing may write
REFUSALS = {2, 3, 4, 8}


class Outcome(NamedTuple):
    kind: str
    words: str


# The place, and the commands that use it.


def prepare_place() -> None:
    """Fill the current directory with a corpus and two runs."""
    tokenizer = BpeTokenizer(vocab_size=280).train(iter(TEXTS))
    encode = Tokenizer.from_str(tokenizer).encode
    documents = [[0, *encode(f"{text} {number}").ids] for number, text in enumerate(TEXTS)]
    held_out = documents[:9]
    write_corpus(CORPUS, documents, held_out, vocab_size=280, prefix=[0], tokenizer=tokenizer, per_shard=50)
    CANARY.write_text("untouched")
    records = [{"text": text, "label": text.split()[0]} for text in TEXTS[:9]]
    Path("data.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    train(STEPS)
    tune()


def train(steps: int, *more: str) -> None:
    settings = [
        *("data=prepared", f"data.sources.prepared.path={CORPUS}", "data.seq_len=16", "model=decoder"),
        *("model.width=16", "model.layers=1", "model.heads=2", f"train.steps={steps}", "train.batch_size=2"),
        *("train.micro_batch_size=2", "log.every=1", "eval.every=2", "checkpoint.every=2", "schedule=constant"),
        *("schedule.warmup_steps=0", "optim.lr=1e-2", f"run.name={RUN.name}", "tracker.progress=false"),
        *more,
    ]
    pretrain(compose(settings))


def tune() -> None:
    settings = [
        *("task=classification", f"init_from={RUN}", "task.train=data.jsonl", "task.validation=data.jsonl"),
        *("task.max_tokens=16", "train.epochs=1", "train.batch_size=3", "optim.lr=1e-2", f"run.name={TUNED.name}"),
        *("tracker.progress=false", "eval.every=1"),
    ]
    finetune(compose(settings, root=FINETUNE))


def export_options(run: Path) -> Namespace:
    return Namespace(run=run, step=None, out=None, dtype="fp32", shard_mb=5, overwrite=False, adapters=False)


COMMANDS: dict[str, tuple[str, Callable[[], object]]] = {
    "resume": ("first", lambda: train(STEPS + 2)),
    "sample": ("first", lambda: sample.main([str(RUN), "--prompt", "the", "--max-tokens", "5"])),
    "export": ("first", lambda: export.export_run(export_options(RUN))),
    "report": ("first", lambda: report([str(RUN)])),
    "table": ("first", lambda: table([str(RUN), str(TUNED)])),
    "init_from": ("first", lambda: (shutil.rmtree(TUNED), tune())),
    "resume tuned": ("tuned", tune),
    "predict": ("tuned", lambda: predict([str(TUNED), "data.jsonl"])),
    "export tuned": ("tuned", lambda: finetune_export.export_run(export_options(TUNED))),
    "report tuned": ("tuned", lambda: finetune_report([str(TUNED)])),
}
TRAINING = ("resume", "init_from", "resume tuned")
USES_CORPUS = ("resume",)


def left(command: str, printed: str) -> dict[str, object]:
    """Return what a command is for: what it printed and wrote, or the run that it trained."""
    if command not in TRAINING:
        run = RUN if COMMANDS[command][0] == "first" else TUNED
        written = {"export": "export/*", "report": "report/*.md"}.get(command.partition(" ")[0], "nothing")
        return {"printed": printed, **{path.name: path.read_bytes() for path in run.glob(written)}}
    run = RUN if command == "resume" else TUNED
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [step for step in (run / "checkpoints").glob("step-*") if step.name <= f"step-{STEPS + 2:08d}"]
    return {
        "metrics": [[row.get(key) for key in ("step", "split", "loss", "grad_norm")] for row in rows],
        "tokenizer": Tokenizer.from_file(str(run / "tokenizer.json")).to_str(),
        "weights": weights(max(steps)),
    }


def weights(step: Path) -> dict[str, bytes]:
    [file] = step.glob("*.safetensors")
    with safe_open(file, "np") as tensors:
        return {step.name: b"", **{key: tensors.get_tensor(key).tobytes() for key in tensors.keys()}}  # noqa: SIM118


def contents() -> dict[str, str]:
    """Return the hash of every file of the runs but those that say what was tried."""
    files = [path for path in Path("runs").rglob("*") if path.is_file() and path.name not in {"lock", "log.txt"}]
    files = [path for path in files if not any(part.startswith(".tmp-") for part in path.parts)]
    return {str(path): hashlib.sha256(path.open("rb").read(1 << 22)).hexdigest() for path in files}


class Said(logging.Handler):
    """Collects warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def use(command: str) -> tuple[str, str, list[str]]:
    """Run a command here; return how it ended, what it printed, and its warnings or its error."""
    said, out, err = Said(), io.StringIO(), io.StringIO()
    logger = logging.getLogger()
    logger.addHandler(said)
    try:
        with redirect_stdout(out), redirect_stderr(err):
            answer: list[object] = []
            code = exit_code_of(lambda: answer.append(COMMANDS[command][1]()))
            code = code or (answer[0] if isinstance(answer[0], int) else 0)
    except Exception:
        return "crashed", "", [traceback.format_exc()]
    finally:
        logger.removeHandler(said)
    if code:
        return f"code {code}", "", [err.getvalue().strip()]
    return "done", out.getvalue().replace(str(Path.cwd()), ""), said.lines


# What is drawn.


def any_file(draw: random.Random, *places: Path) -> Path:
    names = ["lock", "log.txt"]
    files = [path for place in places for path in sorted(place.rglob("*")) if path.is_file() and path.name not in names]
    return draw.choice(files)


def places(command: str) -> list[Path]:
    run = RUN if COMMANDS[command][0] == "first" else TUNED
    return [run, *([CORPUS] if command in USES_CORPUS else [])]


def flip(draw: random.Random, path: Path) -> None:
    data = bytearray(path.read_bytes() or b"0")
    for _ in range(draw.choice([1, 1, 3])):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def cut(draw: random.Random, path: Path) -> None:
    os.truncate(path, draw.randrange(path.stat().st_size + 1))


def grow(draw: random.Random, path: Path) -> None:
    path.write_bytes(path.read_bytes() + draw.randbytes(9))


def delete(draw: random.Random, path: Path) -> None:
    path.unlink()


def make_folder(draw: random.Random, path: Path) -> None:
    path.unlink()
    path.mkdir()


def link_to_copy(draw: random.Random, path: Path) -> None:
    path.rename("moved")
    path.symlink_to(Path("moved").absolute())


def link_to_canary(draw: random.Random, path: Path) -> None:
    path.unlink()
    path.symlink_to(CANARY.absolute())


def swap(draw: random.Random, path: Path) -> None:
    other = draw.choice([each for each in sorted(path.parent.iterdir()) if each.is_file() and each != path] or [path])
    path.rename("moved")
    if other != path:
        other.rename(path)
    Path("moved").rename(other)


SHAPES = [b"[]", b"7", b"null", b'"text"', b"NaN", b"", b"{", b"{}", b'{"format": 1}', b'{"step": 2, "step": 2}']
SHAPES += [b"[" * 100_000, b'{"a":' * 100_000, pickle.dumps({"step": 2}), '{"é": 1}'.encode("utf-16"), b'{"a": 1e999}']
SHAPES += [b'{"format": ' + b"9" * 5000 + b"}", b'{"step": "\\ud800"}']
VALUES = [None, -1, 0, 10**30, 2.5, float("nan"), "x", "", [], {}, [1], {"a": 1}, True, "../x", "${oc.env:HOME}"]
VALUES += ["\ud800"]


def other_shape(draw: random.Random, path: Path) -> None:
    if draw.random() < 0.1:
        os.truncate(path, 1 << 40)
    else:
        path.write_bytes(draw.choice(SHAPES))


def seal(content: dict) -> dict:
    """Return an object with the hash that vouches for it, as its writer would give it."""
    content.pop("sha256", None)
    plain = json.loads(json.dumps(content))
    return plain | {"sha256": hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()}


def write_json(path: Path, content: dict, how: str) -> None:
    """Write an object whose seal is made anew, dropped or left as it was."""
    if how == "sealed" and path.name != "state.json":
        content = seal(content)
    elif how == "dropped":
        content.pop("sha256", None)
    path.write_text(json.dumps(content))


HOW = ("sealed", "dropped", "left")


def other_value(draw: random.Random, path: Path) -> None:
    """Change, add or delete one value somewhere in a JSON object."""
    content = json.loads(path.read_text())
    place = content
    while draw.random() < 0.7:
        inner = list(place.values() if isinstance(place, dict) else place)
        inner = [each for each in inner if each and isinstance(each, dict | list)]
        if not inner:
            break
        place = draw.choice(inner)
    key = draw.choice(sorted(place)) if isinstance(place, dict) else draw.randrange(len(place))
    if draw.random() < 0.3:
        del place[key]
    elif isinstance(place[key], int) and draw.random() < 0.5:
        place[key] += draw.choice([-1, 1])
    else:
        place[key] = draw.choice(VALUES)
    write_json(path, content, draw.choice(HOW))


def json_file(draw: random.Random, command: str) -> Path:
    found = [path for place in places(command) for path in sorted(place.rglob("*.json"))]
    return draw.choice([path for path in found if path.name != "tokenizer.json"])


def exchange_tokens(path: Path) -> None:
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["t"], vocabulary["h"] = vocabulary["h"], vocabulary["t"]
    path.write_text(json.dumps(content))


def forge_tokenizer(draw: random.Random, command: str) -> None:
    """Exchange two tokens; the manifest may agree."""
    place = draw.choice(places(command))
    exchange_tokens(place / "tokenizer.json")
    if draw.random() < 0.5:
        content = json.loads((place / "tokenizer.json").read_text())
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
        name, key = ("manifest.json", "tokenizer_sha256") if place == CORPUS else ("run.json", "tokenizer")
        about = json.loads((place / name).read_text())
        about[key] = hashlib.sha256(canonical.encode()).hexdigest()
        write_json(place / name, about, draw.choice(HOW))


def forge_shard(draw: random.Random, command: str) -> None:
    """Exchange two ids of a shard, make its checksums agree, and maybe what the manifest says of the files."""
    shard = CORPUS / "train-00000.arrow"
    whole = np.frombuffer(bytearray(shard.read_bytes()), dtype=np.uint8)
    about = json.loads((CORPUS / "manifest.json").read_text())
    entry = about["splits"]["train"]["shards"][0]
    size = 2 * entry["tokens"]
    crcs = np.frombuffer(bytearray(shard.with_suffix(".crc").read_bytes()), dtype="<u4")
    begin = next(at for at in range(0, len(whole), 8) if zlib.crc32(whole[at : at + min(size, PAGE_BYTES)]) == crcs[0])
    ids = whole[begin : begin + size].view(np.uint16)
    ids[5], ids[50] = 70, 71
    crcs[0] = zlib.crc32(ids.view(np.uint8)[:PAGE_BYTES])
    shard.write_bytes(whole)
    shard.with_suffix(".crc").write_bytes(crcs)
    for key, file in (("sha256", shard), ("crc_sha256", shard.with_suffix(".crc"))):
        if draw.random() < 0.5:
            entry[key] = hashlib.sha256(file.read_bytes()).hexdigest()
    if draw.random() < 0.2:
        del entry["crc_sha256"]
    write_json(CORPUS / "manifest.json", about, draw.choice(HOW))


def shard_outside(draw: random.Random, command: str) -> None:
    about = json.loads((CORPUS / "manifest.json").read_text())
    shard = CORPUS / "train-00000.arrow"
    for file in (shard, shard.with_suffix(".crc")):
        file.rename(file.name)
    if draw.random() < 0.3:
        for file in (shard, shard.with_suffix(".crc")):
            file.symlink_to(Path(file.name).absolute())
    else:
        name = draw.choice([f"../{shard.name}", str(Path(shard.name).absolute()), f"x/../../{shard.name}"])
        about["splits"]["train"]["shards"][0]["file"] = name
    write_json(CORPUS / "manifest.json", about, draw.choice(HOW))


def some_step(draw: random.Random, command: str) -> Path:
    return draw.choice(sorted((places(command)[0] / "checkpoints").glob("step-*")))


def forge_step(draw: random.Random, command: str) -> None:
    """Change weights, a header or the state of a step, and make its manifest agree."""
    step = some_step(draw, command)
    about = json.loads((step / "manifest.json").read_text())
    name = draw.choice(sorted(about["files"]))
    data = bytearray((step / name).read_bytes())
    if name == "state.json":
        state = json.loads(data)
        state["tokens"] += 1
        state["resume"]["model.heads"] = 4
        data = json.dumps(state).encode()
    elif draw.random() < 0.3:
        data[: len(data) // 2] = data[: len(data) // 2].replace(b"[16,", b"[61,").replace(b"F32", b"I32")
    else:
        data[-3] ^= 64
    (step / name).write_bytes(data)
    about["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    write_json(step / "manifest.json", about, draw.choice(HOW))


def future_step(draw: random.Random, command: str) -> None:
    step = some_step(draw, command)
    about = json.loads((step / "manifest.json").read_text())
    write_json(step / "manifest.json", about | {"format": draw.choice([2, 99])}, draw.choice(HOW))


def rename_step(draw: random.Random, command: str) -> None:
    step = some_step(draw, command)
    other = step.with_name(draw.choice(["step-00000001", "step-00000009"]))
    if other != step:
        shutil.rmtree(other, ignore_errors=True)
        step.rename(other)


def lose_steps(draw: random.Random, command: str) -> None:
    for step in draw.choice([[some_step(draw, command)], sorted(some_step(draw, command).parent.iterdir())]):
        shutil.rmtree(step)


def tamper_metrics(draw: random.Random, command: str) -> None:
    path = places(command)[0] / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    at = draw.randrange(len(lines))
    match draw.choice(["lose", "half", "swap", "digit", "repeat", "step"]):
        case "lose":
            del lines[at]
        case "half":
            del lines[: draw.randrange(len(lines) + 1)]
        case "swap":
            lines[at], lines[0] = lines[0], lines[at]
        case "digit":
            lines[at] = lines[at].replace("5", "6")
        case "repeat":
            lines.insert(at, lines[at])
        case "step":
            lines[at] = json.dumps({**json.loads(lines[at]), "step": draw.choice(VALUES[:-1])}) + "\n"
    path.write_text("".join(lines))


def link_written(draw: random.Random, command: str) -> None:
    """Make a link of something that a run writes."""
    run = places(command)[0]
    names = ["lock", "log.txt", "metrics.jsonl", "run.json", "config.yaml", "tokenizer.json", "report", "checkpoints"]
    path = run / draw.choice([*names, "checkpoints/.tmp-step-00000006-abcd", "export", "report/report.md"])
    outside = Path("outside")
    if path.is_dir():
        path.rename(outside)
    elif path.exists():
        path.unlink()
        outside = CANARY
    elif path.suffix or draw.random() < 0.5:
        outside = CANARY
    else:
        outside.mkdir()
        (outside / "precious").write_text("untouched")
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(outside.absolute())


def other_network(draw: random.Random, command: str) -> None:
    """Say another function of the same shapes in run.json."""
    path = places(command)[0] / "run.json"
    record = json.loads(path.read_text())
    change = draw.choice([{"heads": 4}, {"norm_eps": 0.1}, {"layers": 10**9}, {"width": 10**9}, {"choice": "model=x"}])
    record["network"] |= change
    write_json(path, record, draw.choice(HOW))


def on_file(change: Callable[[random.Random, Path], None]) -> Callable[[random.Random, str], None]:
    def forge(draw: random.Random, command: str) -> None:
        change(draw, any_file(draw, *places(command)))

    forge.__name__ = change.__name__
    return forge


def on_json(change: Callable[[random.Random, Path], None]) -> Callable[[random.Random, str], None]:
    def forge(draw: random.Random, command: str) -> None:
        change(draw, json_file(draw, command))

    forge.__name__ = change.__name__
    return forge


FORGERIES = [
    *map(on_file, (flip, flip, cut, grow, delete, make_folder, link_to_copy, link_to_canary, swap)),
    *map(on_json, (other_shape, other_shape, other_value, other_value, other_value)),
    *(forge_tokenizer, forge_step, forge_step, future_step, rename_step, lose_steps, tamper_metrics, tamper_metrics),
    *(link_written, link_written, other_network),
]
OF_CORPORA = [forge_shard, shard_outside]


class Laboratory:
    """An untouched place, and what each command does with a copy of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.expected: dict[str, tuple[dict[str, object], list[str]]] = {}
        (folder / "sound").mkdir()
        with chdir(folder / "sound"):
            prepare_place()

    def copy(self) -> Path:
        place = self.folder / "copy"
        shutil.rmtree(place, ignore_errors=True)
        return shutil.copytree(self.folder / "sound", place, symlinks=True)

    def reference(self, command: str) -> tuple[dict[str, object], list[str]]:
        """Return what a command leaves of an untouched copy, and its warnings."""
        if command not in self.expected:
            with chdir(self.copy()):
                end, printed, warnings = use(command)
                assert end == "done", warnings
                self.expected[command] = left(command, printed), warnings
        return self.expected[command]

    def draw(self, seed: int) -> tuple[str, Outcome]:
        """Forge a copy by a seed and use it; return what was done and what became of it."""
        draw = random.Random(seed)
        command = draw.choice([*COMMANDS, "resume", "resume"])
        self.reference(command)
        forge = draw.choice([*FORGERIES, *(OF_CORPORA * 4 if command in USES_CORPUS else [])])
        with chdir(self.copy()):
            forge(draw, command)
            return f"{forge.__name__}, {command}", self.outcome(command)

    def outcome(self, command: str) -> Outcome:
        (expected, usual), before = self.expected[command], contents()
        end, printed, words = use(command)
        text = " | ".join(line for line in words if line not in usual)
        precious = Path("outside/precious")
        if CANARY.read_text() != "untouched" or (precious.parent.exists() and len(list(precious.parent.iterdir())) > 9):
            return Outcome("wrong", f"wrote through a link; {text}")
        if end == "crashed":
            return Outcome("wrong", text)
        if end != "done":
            if int(end.removeprefix("code ")) not in REFUSALS or not text or "Traceback" in text:
                return Outcome("wrong", f"{end}: {text}")
            changed = [name for name, digest in contents().items() if before.get(name) != digest]
            if changed and command != "init_from":
                return Outcome("wrong", f"{changed} written before the refusal: {text}")
            return Outcome("refused", f"{end}: {text}")
        try:
            found = left(command, printed)
        except Exception as error:
            return Outcome("said" if text else "wrong", f"{error!r}; {text}")
        differing = [key for key in expected | found if found.get(key) != expected.get(key)]
        if differing and not text:
            return Outcome("wrong", f"another {differing} without a word")
        return Outcome("said" if text else "same", f"{differing}; {text}")


def main(number: int, first: int = 0) -> int:
    """Draw so many forgeries and print what became of them; return how many ended wrong."""
    logging.getLogger().setLevel(logging.CRITICAL + 1)
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        laboratory = Laboratory(Path(folder))
        for seed in range(first, first + number):
            what, outcome = laboratory.draw(seed)
            counts[outcome.kind] += 1
            shown = outcome.words if outcome.kind == "wrong" else outcome.words[:200].replace("\n", " ")
            print(f"{seed} {outcome.kind}: {what}: {shown.replace(folder, '')}", flush=True)
    print(dict(counts))
    return counts["wrong"]


if __name__ == "__main__":
    sys.exit(min(main(*map(int, sys.argv[1:])), 1))

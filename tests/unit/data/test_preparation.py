"""Preparation with real processes: the right ids, the same bytes however it went, and every fault by name."""

import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest
from tokenizers import Tokenizer

from pretrain.data.corpus import Corpus
from pretrain.data.encoding import PIECE_CHARS, encode_documents, is_held_out, pieces
from pretrain.data.manifest import PAGE_BYTES, Manifest
from pretrain.data.preparation import PrepareConfig, prepare, verify
from pretrain.data.shards import ShardWriter, writing
from pretrain.data.sources import Cut, PreparedSource, SourceConfig, TextSource
from pretrain.data.tokenizer import BpeTokenizer, TokenizerFile
from pretrain.errors import ConfigError, DataError, ResourceError
from pretrain.prepare import arguments, plan_file

ROOT = Path(__file__).parents[3]
VOCABULARY = ["the", "quick", "fox", "jumps", "over", "a", "lazy", "dog", "def", "return", "self.x", "None", "is", "é"]


def story(seed: int, words: int = 400) -> str:
    chosen = random.Random(seed).choices(VOCABULARY, k=words)
    return f"story {seed}\n" + "\n".join(" ".join(chosen[start : start + 9]) for start in range(0, words, 9))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(BpeTokenizer(vocab_size=300).train(story(seed) for seed in range(50)))
    return TokenizerFile(path=str(path))


def write_stories(directory: Path, numbers) -> TextSource:
    directory.mkdir(exist_ok=True)
    for number in numbers:
        path = directory / f"{number:05d}.txt"
        path.write_text(story(number))
        os.utime(path, (1e9, 1e9))
    return TextSource(paths=[f"{directory}/*.txt"])


def config(root, **values) -> PrepareConfig:
    return PrepareConfig(**{"root": str(root), "held_out": 0.1, "workers": 1, "unit_bytes": 20_000} | values)


def rows(directory: Path, split: str) -> list[list[int]]:
    """The documents of a split, read with pyarrow alone."""
    shards = Manifest.load(directory).splits[split].shards
    return [
        row for shard in shards for row in pa.ipc.open_file(directory / shard.file).read_all()["tokens"].to_pylist()
    ]


def contents(root: Path) -> dict[str, str]:
    """Every file below a directory with the hash of its bytes, but locks: they name their last holder."""
    files = sorted(path for path in root.rglob("*") if path.is_file() and path.parent.name != ".locks")
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def start(sources, tokenizer, cfg, **options) -> subprocess.Popen:
    """Call `prepare` in a process of its own, the one that `python -m pretrain.prepare` becomes."""
    with plan_file(sources, tokenizer, cfg) as plan:
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        command = [sys.executable, *arguments(plan)]
        return subprocess.Popen(command, cwd=ROOT, pass_fds=[plan.fileno()], **streams, **options)


def test_preparing_needs_no_torch():
    modules = "pretrain.prepare, pretrain.data.preparation, pretrain.data.records"
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_ids_are_the_tokenizers_own(tmp_path, tokenizer):
    source = write_stories(tmp_path / "text", range(60))
    cfg = config(tmp_path)
    directory = prepare({"tales": source}, tokenizer, cfg)["tales"]
    assert directory.name.startswith("tales-") and directory.parent == tmp_path
    reference = Tokenizer.from_file(tokenizer.path)
    expected = {"train": [], "validation": []}
    for number in range(60):
        side = "validation" if is_held_out(story(number).encode(), cfg.held_out) else "train"
        expected[side].append(story(number))
    manifest = verify(directory)
    for split, texts in expected.items():
        assert rows(directory, split) == [[0, *reference.encode(text).ids] for text in texts]
        part = manifest.splits[split]
        assert part.documents == len(texts) > 0
        assert part.text_bytes == sum(len(text.encode()) for text in texts)
        assert part.tokens == sum(map(len, rows(directory, split)))
        corpus = Corpus.open(directory, split)  # the reader accepts what was written
        assert corpus.read(0, corpus.num_tokens).tolist() == [token for row in rows(directory, split) for token in row]
        assert corpus.document_lengths().tolist() == [len(row) for row in rows(directory, split)]
    assert len(manifest.splits["train"].shards) > 3
    assert (manifest.dtype, manifest.vocab_size, manifest.prefix, manifest.suffix) == ("uint16", 300, [0], [])


def test_any_number_of_workers_gives_the_same_bytes(tmp_path):
    source = write_stories(tmp_path / "text", range(60))
    trained = BpeTokenizer(vocab_size=290)
    for workers in (1, 3):
        prepare({"tales": source}, trained, config(tmp_path / f"with{workers}", workers=workers))
    one, three = contents(tmp_path / "with1"), contents(tmp_path / "with3")
    assert one == three
    assert not [name for name in one if "partial" in name or "tmp" in name]


def test_a_long_document_has_the_ids_of_the_whole(tokenizer):
    reference = Tokenizer.from_file(tokenizer.path)
    for text in (story(1, 300_000), story(2, 300_000).replace("\n", " "), "é" * (5 * PIECE_CHARS), "short", ""):
        parts = list(pieces(text))
        assert "".join(parts) == text and max(map(len, parts)) <= 2 * PIECE_CHARS
        assert len(parts) > 1 or len(text) <= 2 * PIECE_CHARS
        if "é" * 99 in text:
            continue  # one word: cut somewhere, nothing else is promised
        [(same, ids)] = encode_documents(reference, [text], [7], [8, 9])
        assert same == text and ids.tolist() == [7, *reference.encode(text).ids, 8, 9]


def test_killed_again_and_again_it_ends_with_the_same_bytes(tmp_path, tokenizer):
    source = write_stories(tmp_path / "text", range(1200))
    cfg = config(tmp_path / "straight", workers=2, unit_bytes=100_000)
    prepare({"tales": source}, tokenizer, cfg)
    cfg = config(tmp_path / "killed", workers=2, unit_bytes=100_000)
    finished: dict[str, tuple[int, int]] = {}  # record -> inode and time of a unit that was finished before a kill
    delays = random.Random(5)
    kills = 0
    while kills < 3:
        process = start({"tales": source}, tokenizer, cfg)
        while process.poll() is None and len(records(tmp_path / "killed")) < len(finished) + 1 + kills:
            time.sleep(0.002)
        time.sleep(delays.uniform(0, 0.05))
        if process.poll() is not None:
            break
        tree = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        kills += 1
        assert not psutil.wait_procs(tree, timeout=10)[1], "workers outlive a killed parent"
        for name, identity in finished.items():
            assert records(tmp_path / "killed")[name] == identity, "a finished unit was done again"
        finished = records(tmp_path / "killed")
    assert kills == 3 and finished
    final = start({"tales": source}, tokenizer, cfg)
    assert final.wait() == 0, final.stderr.read()
    assert contents(tmp_path / "killed") == contents(tmp_path / "straight")


def records(root: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for path in root.glob("*.partial/units/[0-9]*.json"):
        status = path.stat()
        found[path.name] = status.st_ino, status.st_mtime_ns
    return found


def test_one_process_works_and_the_others_wait(tmp_path, tokenizer):
    source = write_stories(tmp_path / "text", range(400))
    together = [start({"tales": source}, tokenizer, config(tmp_path)) for _ in range(3)]
    answers = [process.communicate(timeout=120) for process in together]
    assert [process.returncode for process in together] == [0, 0, 0], answers
    assert len({out for out, _ in answers}) == 1 and "tales: " in answers[0][0]
    assert sum("preparing tales: " in err for _, err in answers) == 1
    waiting = [err for _, err in answers if "waiting for pid" in err]
    assert len(waiting) == 2 and all(f"on host {os.uname().nodename}" in err for err in waiting)
    assert not list(tmp_path.glob("*.partial"))


def test_a_killed_worker_is_named_and_the_next_call_goes_on(tmp_path, tokenizer):
    source = write_stories(tmp_path / "text", range(2000))
    cfg = config(tmp_path / "corpora", workers=1, unit_bytes=100_000)
    process = start({"tales": source}, tokenizer, cfg)
    while not records(tmp_path / "corpora"):
        time.sleep(0.01)
    for child in psutil.Process(process.pid).children(recursive=True):
        if "spawn_main" in " ".join(child.cmdline()):
            child.send_signal(signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == ResourceError.exit_code and "a worker process died" in err
    before = records(tmp_path / "corpora")
    assert before
    [directory] = prepare({"tales": source}, tokenizer, cfg).values()
    assert verify(directory).splits["train"].documents > 1000


def test_prepared_corpora_are_found_again_without_work(tmp_path, tokenizer):
    source = write_stories(tmp_path / "text", range(40))
    cfg = config(tmp_path)
    first = prepare({"tales": source}, tokenizer, cfg)
    before = {path: path.stat().st_mtime_ns for path in first["tales"].iterdir()}
    source.weight = 3.0
    assert prepare({"tales": source}, tokenizer, config(tmp_path, workers=2)) == first
    assert {path: path.stat().st_mtime_ns for path in first["tales"].iterdir()} == before
    prepared = {"again": PreparedSource(path=str(first["tales"])), "tales": source}
    assert prepare(prepared, tokenizer, cfg) == {"again": first["tales"], "tales": first["tales"]}


def test_what_changes_the_corpus_changes_its_directory(tmp_path, tokenizer):
    source = write_stories(tmp_path / "text", range(40))
    cfg = config(tmp_path)
    seen = {prepare({"tales": source}, tokenizer, cfg)["tales"]}
    seen.add(prepare({"tales": source}, tokenizer, config(tmp_path, held_out=0.2))["tales"])
    framed = TokenizerFile(path=tokenizer.path, prefix=[], suffix=["<|endoftext|>"])
    seen.add(prepare({"tales": source}, framed, cfg)["tales"])
    seen.add(prepare({"tales": TextSource(paths=source.paths, documents=Cut.line)}, tokenizer, cfg)["tales"])
    os.utime(tmp_path / "text" / "00000.txt", (2e9, 2e9))
    seen.add(prepare({"tales": source}, tokenizer, cfg)["tales"])
    assert len(seen) == 5


def test_held_out_documents_stay_so_when_the_corpus_grows(tmp_path, tokenizer):
    few = prepare({"tales": write_stories(tmp_path / "few", range(100, 200))}, tokenizer, config(tmp_path))["tales"]
    many = prepare({"tales": write_stories(tmp_path / "many", range(400))}, tokenizer, config(tmp_path))["tales"]
    sides = {split: {tuple(row) for row in rows(many, split)} for split in ("train", "validation")}
    for split, other in (("train", "validation"), ("validation", "train")):
        documents = {tuple(row) for row in rows(few, split)}
        assert documents and documents <= sides[split] and not documents & sides[other]
    share = len(sides["validation"]) / 400
    assert 0.05 < share < 0.16  # of 0.1, three standard deviations


def test_a_split_that_is_needed_is_not_empty(tmp_path, tokenizer):
    source = write_stories(tmp_path / "text", range(3))
    with pytest.raises(
        DataError, match=r"held_out=0\.001: none of the 3 documents of tales is in the validation split"
    ):
        prepare({"tales": source}, tokenizer, config(tmp_path, held_out=0.001))
    with pytest.raises(DataError, match="none of the 3 documents of tales is in the train split"):
        prepare({"tales": source}, tokenizer, config(tmp_path, held_out=0.99999))
    directory = prepare({"tales": source}, tokenizer, config(tmp_path, held_out=0.0))["tales"]
    assert verify(directory).splits["validation"].shards == []
    (tmp_path / "blank.txt").write_text("\n \n")
    with pytest.raises(DataError, match=r"data\.sources\.blank: no text in it \(left out: \{'empty': 1\}\)"):
        prepare({"blank": TextSource(paths=[f"{tmp_path}/blank.txt"])}, tokenizer, config(tmp_path))


def test_bad_input_is_counted_in_the_manifest_or_stops_everything(tmp_path, tokenizer):
    source = write_stories(tmp_path / "text", range(200))
    (tmp_path / "text" / "00150.txt").write_bytes(b"bad \xff text")
    (tmp_path / "text" / "00151.txt").write_bytes(b"")
    directory = prepare({"tales": source}, tokenizer, config(tmp_path))["tales"]
    assert Manifest.load(directory).skipped == {"empty_file": 1, "invalid_utf8": 1}
    cfg = config(tmp_path)
    cfg.on_invalid = type(cfg.on_invalid).fail
    with pytest.raises(DataError, match=r"00150\.txt: byte 4: not valid UTF-8"):
        prepare({"tales": source}, tokenizer, cfg)


def test_corpora_of_different_tokenizers_are_not_mixed(tmp_path, tokenizer):
    source = write_stories(tmp_path / "text", range(40))
    other = prepare({"tales": source}, BpeTokenizer(vocab_size=290), config(tmp_path))["tales"]
    mixed = {"old": PreparedSource(path=str(other)), "new": TextSource(paths=source.paths)}
    with pytest.raises(ConfigError, match=r"different tokenizers cannot be mixed: .*data\.sources\.old"):
        prepare(mixed, tokenizer, config(tmp_path))
    assert not list(tmp_path.glob("new-*")), "refused before the work"
    with pytest.raises(DataError, match=r"nowhere/manifest\.json: not there"):
        prepare({"old": PreparedSource(path=str(tmp_path / "nowhere"))}, tokenizer, config(tmp_path))


def test_a_source_of_no_kind_is_refused(tmp_path, tokenizer):
    with pytest.raises(ConfigError, match=r"data\.sources\.web: of no kind; .*\+source@data\.sources\.web=text"):
        prepare({"web": SourceConfig()}, tokenizer, config(tmp_path))


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden"])
def test_a_source_name_is_a_name(tmp_path, tokenizer, name):
    with pytest.raises(ConfigError, match=r"data\.sources\."):
        prepare({name: TextSource(paths=["x"])}, tokenizer, config(tmp_path))


@pytest.mark.parametrize(
    "values",
    [{"root": ""}, {"held_out": 1.0}, {"held_out": -0.1}, {"workers": -1}, {"unit_bytes": -1}, {"batch_bytes": 1}],
)
def test_impossible_settings_are_refused(values):
    with pytest.raises(ValueError, match=rf"data\.prepare\.{next(iter(values))}="):
        PrepareConfig(**values)


def test_a_full_disk_is_named_and_what_is_prepared_is_kept(tmp_path, tokenizer):
    source = write_stories(tmp_path / "text", range(300))
    cfg = config(tmp_path / "corpora", unit_bytes=200_000)

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    process = start({"tales": source}, tokenizer, cfg, preexec_fn=limit)
    _, err = process.communicate(timeout=60)
    assert process.returncode == ResourceError.exit_code, err
    assert "corpora/tales-" in err and ".arrow: File too large; free some space" in err
    assert not list((tmp_path / "corpora").glob("*.partial/corpus/tmp-*"))
    with pytest.raises(ResourceError, match="/dev/full: No space left on device"), writing(Path("/dev/full")):
        Path("/dev/full").write_text("x")


def test_an_id_beyond_the_vocabulary_is_refused(tmp_path):
    writer = ShardWriter(tmp_path, "train-00000", dtype="uint16", vocab_size=300, batch_bytes=PAGE_BYTES)
    writer.add(np.array([1, 299]), 2)
    with pytest.raises(DataError, match=r"train-00000\.arrow: .*id 300; ids must be below its vocabulary size 300"):
        writer.add(np.array([1, 300]), 2)
    writer.abandon()
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def sound(tmp_path_factory, tokenizer):
    root = tmp_path_factory.mktemp("sound")
    return prepare({"tales": write_stories(root / "text", range(60))}, tokenizer, config(root))["tales"]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def redirect(path: Path) -> None:
    raw = json.loads(path.read_text())
    raw["splits"]["train"]["shards"][0]["file"] = "../train-00000.arrow"
    path.write_text(json.dumps(raw))


DAMAGE = {
    r"train-00000\.arrow: SHA-256 \w+, expected \w+": ("train-00000.arrow", flip),
    r"train-00000\.arrow: bytes \d+, expected \d+": ("train-00000.arrow", lambda path: os.truncate(path, 100)),
    r"train-00000\.arrow: .* not a file there": ("train-00000.arrow", Path.unlink),
    r"train-00000\.crc: not the checksums of train-00000\.arrow": ("train-00000.crc", flip),
    r"train-00001\.crc: not the checksums": ("train-00001.crc", Path.unlink),
    r"tokenizer\.json: SHA-256 missing, expected": ("tokenizer.json", Path.unlink),
    r"tokenizer\.json: SHA-256 \w+, expected": ("tokenizer.json", lambda path: path.write_text("{}")),
    r"\.\./train-00000\.arrow: the manifest names it": ("manifest.json", redirect),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_verify_names_the_file_and_what_it_should_be(tmp_path, sound, message):
    directory = shutil.copytree(sound, tmp_path / "copy")
    verify(directory)
    name, damage = DAMAGE[message]
    damage(directory / name)
    with pytest.raises(DataError, match=message):
        verify(directory)


def test_memory_stays_bounded_with_a_10_mb_line(tmp_path, tokenizer):
    path = tmp_path / "long.txt"
    lines = [story(number).replace("\n", " ") for number in range(500)]
    path.write_text("\n".join([*lines, " ".join(lines * 10)[: 10 * 2**20], *lines]))
    source = TextSource(paths=[str(path)], documents=Cut.line)
    process = start({"long": source}, tokenizer, config(tmp_path / "corpora", workers=2, unit_bytes=2**20))
    peak = 0
    while process.poll() is None:
        peak = max(peak, resident_bytes(process.pid))
        time.sleep(0.02)
    assert process.returncode == 0, process.stderr.read()
    assert 50e6 < peak < 500e6


def resident_bytes(pid: int) -> int:
    """Resident memory of a process and all its descendants."""
    try:
        tree = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return 0
    total = 0
    for process in tree:
        try:
            total += process.memory_info().rss
        except psutil.Error:
            continue
    return total


def test_the_entry_prepares_verifies_and_says_what_it_made(tmp_path, tokenizer):
    command = [
        *(sys.executable, "-m", "pretrain.prepare", "tokenizer=file", f"tokenizer.path={tokenizer.path}"),
        *(f"data.prepare.root={tmp_path}", "data.prepare.held_out=0.05", "data.prepare.verify=true"),
    ]

    def run():
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=200)

    first, second = run(), run()
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout and "preparing" not in second.stderr
    [directory] = tmp_path.glob("stdlib-*")
    manifest = Manifest.load(directory)
    assert str(directory) in first.stdout
    assert f"{manifest.splits['train'].tokens:,} tokens" in first.stdout
    assert manifest.splits["validation"].documents > 5
    flip(directory / "train-00000.arrow")
    broken = run()
    assert broken.returncode == DataError.exit_code and "train-00000.arrow: SHA-256" in broken.stderr

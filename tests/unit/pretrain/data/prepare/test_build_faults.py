"""Preparation under faults, with real processes: each is named, and nothing finished is lost."""

import os
import re
import resource
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from corpora import edit_json
from preparing import config, flip, records, start, story, write_stories
from waiting import until

from pretrain.data.manifest import PAGE_BYTES, Manifest
from pretrain.data.prepare.build import prepare, verify, writing_to
from pretrain.data.prepare.config import PrepareConfig
from pretrain.data.prepare.shards import ShardWriter
from pretrain.data.sources.base import Cut, PreparedSource, SourceConfig, TextSource
from pretrain.errors import ConfigError, DataError, ResourceError
from pretrain.tokenizer.bpe import BpeTokenizer


def test_a_killed_worker_is_named_and_the_next_call_goes_on(tmp_path, tokenizer):
    source = write_stories(tmp_path / "text", range(800))
    cfg = config(tmp_path / "corpora", workers=1, unit_bytes=100_000)
    process = start({"tales": source}, tokenizer, cfg)
    until(lambda: records(tmp_path / "corpora"))
    for child in psutil.Process(process.pid).children(recursive=True):
        if "spawn_main" in " ".join(child.cmdline()):
            child.send_signal(signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == ResourceError.exit_code and "a worker process died" in err
    before = records(tmp_path / "corpora")
    assert before
    [directory] = prepare({"tales": source}, tokenizer, cfg).values()
    assert verify(directory).splits["train"].documents > 600


def test_a_split_that_is_needed_is_not_empty(tmp_path, tokenizer):
    source = write_stories(tmp_path / "text", range(3))
    (tmp_path / "text" / "00000.txt").write_text("one letter at the end of words and spaces" + " " * 99)
    with pytest.raises(DataError, match=r"held_out=0\.1: none of the 1 documents of tales is in the validation split"):
        prepare({"tales": TextSource(paths=f"{tmp_path}/text/00000.txt")}, tokenizer, config(tmp_path))
    directory = prepare({"tales": source}, tokenizer, config(tmp_path, held_out=0.0))["tales"]
    assert verify(directory).splits["validation"].shards == []
    (tmp_path / "blank.txt").write_text("\n \n")
    with pytest.raises(DataError, match=r"data\.sources\.blank: no text in it \(left out: empty 1\)"):
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
    assert re.search(r"corpora/tales-\w+\.partial: File too large; free some space", err), err
    assert not list((tmp_path / "corpora").glob("*.partial/corpus/tmp-*"))
    with pytest.raises(ResourceError, match="work: No space left on device; free some"), writing_to(tmp_path / "work"):
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


def redirect(path: Path) -> None:
    edit_json(path, lambda raw: raw["splits"]["train"]["shards"][0].update(file="../train-00000.arrow"))


DAMAGE = {
    r"train-00000\.arrow: SHA-256 \w+, expected \w+": ("train-00000.arrow", flip),
    r"train-00000\.arrow: bytes \d+, expected \d+": ("train-00000.arrow", lambda path: os.truncate(path, 100)),
    r"train-00000\.arrow: not there as a file of the corpus": ("train-00000.arrow", Path.unlink),
    r"train-00000\.crc: SHA-256 \w+, expected \w+": ("train-00000.crc", flip),
    r"train-00001\.crc: not there as a file of the corpus": ("train-00001.crc", Path.unlink),
    r"tokenizer\.json: SHA-256 missing, expected": ("tokenizer.json", Path.unlink),
    r"tokenizer\.json: SHA-256 \w+, expected": ("tokenizer.json", lambda path: path.write_text("{}")),
    r"manifest\.json: .*'\.\./train-00000\.arrow', must be the name of a file": ("manifest.json", redirect),
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

"""Compressors as a yardstick: the right bytes, the right sizes."""

import shutil
import subprocess
import zlib
from pathlib import Path

import pytest

from pretrain.data.prepare.build import prepare
from pretrain.data.prepare.config import PrepareConfig
from pretrain.data.sources.base import Cut, TextSource
from pretrain.report.baselines import baselines, compression_baselines, held_out_text
from pretrain.tokenizer.bpe import BpeTokenizer

SOURCE = Path(__file__).read_bytes() * 3


def test_sizes_equal_zlib_and_the_command_line():
    found = compression_baselines(SOURCE)
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    raw = len(deflate.compress(SOURCE) + deflate.flush())
    assert found["gzip -9"] == 8 * (raw + 18) / len(SOURCE)  # 10 bytes of header, 8 of trailer
    assert list(found) == ["gzip -9", "xz -9"]
    if shutil.which("xz"):
        xz = subprocess.run(["xz", "-9", "--stdout"], input=SOURCE, capture_output=True, check=True).stdout
        assert found["xz -9"] == pytest.approx(8 * len(xz) / len(SOURCE), rel=0.01)
    assert 0 < found["xz -9"] < 8


def test_no_baselines_of_nothing(tmp_path):
    assert compression_baselines(b"") == {}
    assert baselines([tmp_path / "gone"]) == {}


def test_the_held_out_text_is_read_back_to_the_byte(tmp_path):
    lines = [f"line {number}: Grüße, {'é' * (number % 7)} <|endoftext|> \t{number * 37}" for number in range(300)]
    (tmp_path / "lines.txt").write_text("\n".join(lines))
    source = TextSource(paths=[str(tmp_path / "lines.txt")], documents=Cut.line)
    cfg = PrepareConfig(root=str(tmp_path / "corpora"), held_out=0.3, workers=1)
    directory = prepare({"lines": source}, BpeTokenizer(vocab_size=320), cfg)["lines"]
    text = held_out_text(directory)
    assert text
    kept = [line.rstrip("\n") for line in lines if line.encode() in text]
    assert 50 < len(kept) < 130, "about three in ten lines are held out"
    assert len(text) == sum(len(line.encode()) for line in kept) + text.count(b"\n")
    assert baselines([directory]) == compression_baselines(text)

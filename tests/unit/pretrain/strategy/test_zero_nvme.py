"""What is refused before shards go to NVMe. That they come back is tested over real ranks."""

import subprocess
import sys

import pytest
from toys import ALONE

from pretrain.errors import ConfigError
from pretrain.strategy.compile import CompileConfig
from pretrain.strategy.precision import FP32
from pretrain.strategy.zero import Offload, ZeROConfig
from pretrain.strategy.zero_nvme import claim

HOLD = """
import pathlib, sys
from pretrain.strategy.zero_nvme import claim
claim(pathlib.Path(sys.argv[1]), 1)
print("held", flush=True)
sys.stdin.read()
"""


def test_without_a_compiler_and_libaio_a_run_is_refused_before_it_trains(tmp_path, monkeypatch):
    for name, value in {"DS_ACCELERATOR": "cpu", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)  # DeepSpeed wants them set; other tests must not see them
    monkeypatch.setenv("CC", "false")  # as DeepSpeed finds out: it compiles a program that calls libaio
    cfg = ZeROConfig(stage=3, offload_optimizer=Offload.nvme, nvme_path=str(tmp_path))
    with pytest.raises(ConfigError, match=r"strategy\.offload_optimizer=nvme: .* async_io.*; install libaio-dev"):
        cfg.build(world=ALONE, precision=FP32(), compilation=CompileConfig())


def test_a_folder_is_refused_while_another_process_keeps_the_shards_of_the_rank_there(tmp_path):
    folder = tmp_path / "new" / "folder"
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout and other.stdout.readline() == "held\n"
    with pytest.raises(
        ConfigError, match=r"strategy\.nvme_path=.*folder: another run .* rank 1 .* name another folder"
    ):
        claim(folder, 1)
    claim(folder, 0)
    other.communicate()
    claim(folder, 1)
    claim(folder, 1)  # by the same process


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"strategy\.nvme_path=.*file: must be writable, .*; name another folder"):
        claim(tmp_path / "file", 0)

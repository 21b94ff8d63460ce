"""A checkpoint of the hub, or why there is none, is the same on all ranks."""

import pytest
from ranks import on_ranks

from pretrain.errors import ConfigError
from pretrain.fetch import fetch

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def find(world, folder):
    cached = folder / "hub" / "models--org--name" / "snapshots" / COMMIT
    assert fetch("org/name", world) == cached
    with pytest.raises(ConfigError, match="init_from=org/other: no such directory, and not to be had from the Hugging"):
        fetch("org/other", world)


def test_every_rank_reads_the_cache_of_the_first(tmp_path, monkeypatch):
    repository = tmp_path / "hub" / "models--org--name"
    (repository / "snapshots" / COMMIT).mkdir(parents=True)
    (repository / "snapshots" / COMMIT / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    on_ranks(2, find, tmp_path)

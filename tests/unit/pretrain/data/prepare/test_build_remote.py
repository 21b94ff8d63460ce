"""Corpora from remote files: the bytes of one from a disk, resumed without fetching twice, and without a secret."""

import os
import time
from contextlib import ExitStack

import pytest
from preparing import contents, records, rows, start, story
from web_server import serving

from pretrain.data.manifest import Manifest
from pretrain.data.prepare.build import prepare
from pretrain.data.prepare.config import PrepareConfig
from pretrain.data.sources import remote
from pretrain.data.sources.base import Cut, TextSource
from pretrain.errors import DataError

SECRET = "s3cr3t"


def stories(count):
    return {f"/books/{number:02d}.txt": story(number, words=2000).encode() for number in range(count)}


def config(root, **values):
    return PrepareConfig(**{"root": str(root), "held_out": 0.1, "workers": 1, "unit_bytes": 9000} | values)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_remote_corpus_has_the_documents_of_a_local_one(tmp_path, tokenizer, ranges):
    files = stories(3)
    for path, data in files.items():
        (tmp_path / path.removeprefix("/books/")).write_bytes(data)
    local = TextSource(paths=[f"{tmp_path}/*.txt"], documents=Cut.line)
    [expected] = prepare({"text": local}, tokenizer, config(tmp_path / "local")).values()
    with serving(files) as server:
        server.ranges, server.drop_after = ranges, 7000 if ranges else None
        source = TextSource(paths=[f"{server.url}/books/*.txt"], documents=Cut.line)
        [found] = prepare({"text": source}, tokenizer, config(tmp_path / "remote", workers=2)).values()
    for split in ("train", "validation"):
        assert rows(found, split) == rows(expected, split)


def test_a_killed_preparation_fetches_no_finished_file_again(tmp_path, tokenizer):
    root = tmp_path / "corpora"
    cfg = config(root, unit_bytes=1)  # a unit for each file
    with serving(stories(12)) as server:
        sources = {"text": TextSource(paths=[f"{server.url}/books/*.txt"])}
        with start(sources, tokenizer, cfg, start_new_session=True) as process:
            while len(records(root)) < 4:
                assert process.poll() is None
                time.sleep(0.002)
            os.killpg(process.pid, 9)
        done = records(root)
        if len(done) == 12:
            pytest.skip("was done before it could be killed")
        server.asked.clear()
        [directory] = prepare(sources, tokenizer, cfg).values()
        fetched = {name for name in server.files if server.gets(name)}
        assert len(fetched) == 12 - len(done)
        [whole] = prepare(sources, tokenizer, config(tmp_path / "again", unit_bytes=1)).values()
    assert contents(directory) == contents(whole)


def test_a_file_that_changed_makes_another_corpus_and_one_that_did_not_the_same(tmp_path, tokenizer):
    with serving(stories(2)) as server:
        source = TextSource(paths=[f"{server.url}/books/*.txt"], documents=Cut.line)
        [first] = prepare({"text": source}, tokenizer, config(tmp_path)).values()
        server.asked.clear()
        assert prepare({"text": source}, tokenizer, config(tmp_path)) == {"text": first}
        assert not server.gets("/books/00.txt")
        server.files["/books/00.txt"] = story(77, words=2000).encode()
        assert prepare({"text": source}, tokenizer, config(tmp_path)) != {"text": first}


def test_no_secret_is_written_anywhere(tmp_path, tokenizer, monkeypatch):
    root, queries = tmp_path / "corpora", [f"X-Amz-Date=1&X-Amz-Signature={SECRET}", f"token={SECRET}", ""]
    with ExitStack() as servers:
        addresses, names = [], []
        for query in queries:
            server = servers.enter_context(serving(stories(1)))
            server.query, server.login = query, None if query else f"me:{SECRET}"
            names.append(f"{server.url}/books/00.txt")
            user = "" if query else f"me:{SECRET}@"
            addresses.append(f"http://{user}{names[-1].removeprefix('http://')}?{query}".removesuffix("?"))
        source = TextSource(paths=addresses, documents=Cut.line)
        with start({"text": source}, tokenizer, config(root)) as process:
            said = process.communicate()
    assert process.returncode == 0, said
    [corpus] = root.glob("text-*")
    assert Manifest.load(corpus).source["paths"] == names
    monkeypatch.setattr(remote, "WAITS_S", [])
    with pytest.raises(DataError, match=r"cannot be read .*refused") as gone:
        prepare({"text": source}, tokenizer, config(root))
    assert not [text for text in (*said, str(gone.value)) if SECRET in text]
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in written if SECRET in str(path) or SECRET.encode() in path.read_bytes()]

"""Checkpoints of the hub: only what is needed is fetched, the cache serves offline, and a refusal says why."""

import json
import os
import re
import subprocess
import sys
import threading
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import pytest

from pretrain.hub.download import is_hub_name

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = {
    "config.json": b"{}",
    "adapter_config.json": b"{}",
    "tokenizer.json": b'{"version": "1.0"}',
    "model.safetensors": b"weights",
    "model-00001-of-00002.safetensors": b"more weights",
    "model.safetensors.index.json": b"{}",
    "pytorch_model.bin": b"a pickle",
    "onnx/model.onnx": b"another format",
    "README.md": b"words",
}
WANTED = {name for name in REPOSITORY if name.startswith(("config", "adapter", "tokenizer", "model", "README"))}
OLD_COMMIT = "89abcdef0123456789abcdef0123456789abcdef"
REVISIONS = {"main": COMMIT, "v1": OLD_COMMIT, "refs/pr/1": OLD_COMMIT}
FETCH = """
import sys
from pretrain.errors import ConfigError
from pretrain.hub.download import cached, fetch
try:
    name = fetch(sys.argv[1], f"init_from={sys.argv[1]}")
except ConfigError as error:
    sys.exit(str(error))
directory = cached(name, name)
print(name, *sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()))
"""


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a snapshot needs, for one repository `org/name`, which was once called `name`."""

    asked: list[str]

    def do_GET(self):
        self.asked.append(self.path)
        path = unquote(self.path.partition("?")[0])
        revision = path.removeprefix("/api/models/org/name/revision/")
        resolved = re.fullmatch(r"/org/name/resolve/([0-9a-f]{40})/(.+)", path)
        if path.startswith(("/api/models/name/", "/name/")):
            self.send(307, Location=self.path.replace("/name/", "/org/name/", 1))
        elif revision in REVISIONS:
            files = [{"rfilename": name} for name in REPOSITORY]
            self.answer(json.dumps({"id": "org/name", "sha": REVISIONS[revision], "siblings": files}).encode())
        elif path.startswith("/api/models/org/name/tree/"):
            files = [
                {"type": "file", "path": name, "size": len(content), "oid": sha1(content).hexdigest()}
                for name, content in REPOSITORY.items()
            ]
            self.answer(json.dumps(files).encode())
        elif resolved and resolved[2] in REPOSITORY:
            self.answer(REPOSITORY[resolved[2]], **{"X-Repo-Commit": resolved[1]})
        else:
            known = path.startswith("/api/models/org/name/")
            self.send(404, **{"X-Error-Code": "RevisionNotFound" if known else "RepoNotFound"})

    do_HEAD = do_GET

    def answer(self, content, **headers):
        self.send(200, content, ETag=f'"{sha1(content).hexdigest()}"', **headers)

    def send(self, status, content=b"", **headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub():
    """Yield a hub on this machine and what it was asked for."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Hub", (Hub,), {"asked": []}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", server.RequestHandlerClass.asked
    server.shutdown()
    server.server_close()


def fetch(name, cache, endpoint, **environment):
    environment = {"HF_HOME": str(cache), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1", **environment}
    plain = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    command = [sys.executable, "-c", FETCH, name]
    return subprocess.run(command, capture_output=True, text=True, env=plain | environment)


def test_what_is_needed_is_fetched_once_and_no_pickle(hub, tmp_path):
    endpoint, asked = hub
    first = fetch("org/name", tmp_path, endpoint)
    name, *files = first.stdout.split()
    assert (name, set(files)) == (f"org/name@{COMMIT}", WANTED), first.stderr
    assert not [path for path in asked if ".bin" in path or "onnx" in path]
    offline = fetch("org/name", tmp_path, endpoint, HF_HUB_OFFLINE="1")
    assert offline.stdout == first.stdout
    unreachable = fetch("org/name", tmp_path, "http://127.0.0.1:9")
    assert unreachable.stdout == first.stdout, unreachable.stderr
    pinned = fetch(f"org/name@{COMMIT}", tmp_path, "http://127.0.0.1:9")
    assert pinned.stdout == first.stdout, pinned.stderr


@pytest.mark.parametrize("asked", ["org/name@v1", "org/name@refs/pr/1", "name@v1"])
def test_a_revision_is_its_commit(hub, tmp_path, asked):
    name, *files = fetch(asked, tmp_path, hub[0]).stdout.split()
    assert (name, set(files)) == (f"{asked.partition('@')[0]}@{OLD_COMMIT}", WANTED)


def test_an_old_name_without_an_organisation_is_one(hub, tmp_path):
    done = fetch("name", tmp_path, hub[0])
    assert done.stdout.split()[0] == f"name@{COMMIT}", done.stderr


def test_what_cannot_be_had_is_refused_by_name(hub, tmp_path):
    endpoint, _ = hub
    for name, where, more in (
        ("org/other", endpoint, {}),
        ("org/name", "http://127.0.0.1:9", {}),
        ("org/name", endpoint, {"HF_HUB_OFFLINE": "1"}),
        ("org/name@v2", endpoint, {}),
        ("org--name", endpoint, {}),
        ("org/name", "no address", {}),
        ("org/name", endpoint, {"HTTP_PROXY": "http://127.0.0.1:9"}),
        ("org/name", endpoint, {"HTTP_PROXY": "ftp://127.0.0.1"}),
    ):
        done = fetch(name, tmp_path / "empty", where, **more)
        assert done.returncode == 1
        assert f"init_from={name}: no such directory, and not to be had from the Hugging Face hub" in done.stderr
        assert "Traceback" not in done.stderr


def test_paths_are_told_from_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "small").mkdir(parents=True)
    names = [
        "gpt2",
        "bert-base-uncased",
        "org/name",
        "org/name@main",
        "org/name@refs/pr/1",
        "runs/other@main",
        "_o/n.m",
    ]
    assert [name for name in names if is_hub_name(name)] == names
    there, not_there = ["runs", "runs/small"], ["runs/other", "./small", "../small", "./runs/other", "org/name/step"]
    elsewhere = [
        "/abs/x",
        "~/x",
        "x/",
        "/x",
        ".x",
        "",
        "org/name@",
        "org/name@../x",
        "org/name@/x",
        "a b",
        "org/\u00e4",
    ]
    assert not [path for path in there + not_there + elsewhere if is_hub_name(path)]

"""Checkpoints of the hub: only what is needed is fetched, the cache serves offline, and a refusal says why."""

import json
import os
import subprocess
import sys
import threading
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = {
    "config.json": b"{}",
    "tokenizer.json": b'{"version": "1.0"}',
    "model.safetensors": b"weights",
    "model-00001-of-00002.safetensors": b"more weights",
    "model.safetensors.index.json": b"{}",
    "pytorch_model.bin": b"a pickle",
    "onnx/model.onnx": b"another format",
    "README.md": b"words",
}
WANTED = {name for name in REPOSITORY if name.startswith(("config", "tokenizer", "model"))}
FETCH = """
import sys
from pathlib import Path
from pretrain.distributed import World
from pretrain.errors import ConfigError
from pretrain.fetch import fetch
try:
    directory = fetch(sys.argv[1], World.alone())
except ConfigError as error:
    sys.exit(str(error))
print(*sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()))
"""


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a snapshot needs, for one repository `org/name`."""

    asked: list[str]

    def do_GET(self):
        self.asked.append(self.path)
        path, _, _ = self.path.partition("?")
        if path == "/api/models/org/name/revision/main":
            files = [{"rfilename": name} for name in REPOSITORY]
            self.answer(json.dumps({"id": "org/name", "sha": COMMIT, "siblings": files}).encode())
        elif path.startswith("/api/models/org/name/tree/"):
            files = [
                {"type": "file", "path": name, "size": len(content), "oid": sha1(content).hexdigest()}
                for name, content in REPOSITORY.items()
            ]
            self.answer(json.dumps(files).encode())
        elif path.removeprefix(f"/org/name/resolve/{COMMIT}/") in REPOSITORY:
            self.answer(REPOSITORY[path.removeprefix(f"/org/name/resolve/{COMMIT}/")])
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    do_HEAD = do_GET

    def answer(self, content):
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
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
    assert set(first.stdout.split()) == WANTED, first.stderr
    assert not [path for path in asked if ".bin" in path or "onnx" in path or "README" in path]
    offline = fetch("org/name", tmp_path, endpoint, HF_HUB_OFFLINE="1")
    assert offline.stdout == first.stdout
    unreachable = fetch("org/name", tmp_path, "http://127.0.0.1:9")
    assert unreachable.stdout == first.stdout, unreachable.stderr


def test_what_cannot_be_had_is_refused_by_name(hub, tmp_path):
    endpoint, _ = hub
    for name, where, more in (
        ("org/other", endpoint, {}),
        ("org/name", "http://127.0.0.1:9", {}),
        ("org/name", endpoint, {"HF_HUB_OFFLINE": "1"}),
    ):
        done = fetch(name, tmp_path / "empty", where, **more)
        assert done.returncode == 1
        assert f"init_from={name}: no such directory, and not to be had from the Hugging Face hub" in done.stderr
        assert "Traceback" not in done.stderr

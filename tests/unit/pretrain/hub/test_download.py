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
from published import REFUSED

from pretrain.errors import ConfigError
from pretrain.hub.download import is_hub_name
from pretrain.trained.source import find_source

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = {
    "config.json": b"{}",
    "adapter_config.json": b"{}",
    "tokenizer.json": b'{"version": "1.0"}',
    "tokenizer_config.json": b"{}",
    "chat_template.jinja": b"a template",
    "model.safetensors": b"weights",
    "model-00001-of-00002.safetensors": b"more weights",
    "model.safetensors.index.json": b"{}",
    "pytorch_model.bin": b"a pickle",
    "onnx/model.onnx": b"another format",
    "README.md": b"words",
}
WANTED = {name for name in REPOSITORY if name.startswith(("config", "adapter", "tokenizer", "chat", "model", "README"))}
OLD_COMMIT = "89abcdef0123456789abcdef0123456789abcdef"
REVISIONS = {"main": COMMIT, "v1": OLD_COMMIT, "refs/pr/1": OLD_COMMIT}
# A process for each fetch, because the library of the hub reads the environment when it is imported; they are forked
# from one that has imported everything else.
FETCH = """
import json, os, sys
from pretrain.errors import ConfigError
from pretrain.hub.download import cached, fetch

def fetched(name):
    try:
        name = fetch(name, f"init_from={name}")
    except ConfigError as error:
        return str(error)
    directory = cached(name, name)
    return [name, *sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())]

assert "huggingface_hub" not in sys.modules
for name, environment in json.loads(sys.argv[1]):
    if os.fork() == 0:
        os.environ |= environment
        print(json.dumps(fetched(name)), flush=True)
        os._exit(0)
    os.wait()
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


def fetch(cache, *wanted):
    """Fetch (name, endpoint, environment) one after another: of each the name with the files, or what is refused."""
    common = {"HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"}
    each = [(name, {**common, "HF_ENDPOINT": endpoint, **more}) for name, endpoint, more in wanted]
    plain = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    command = [sys.executable, "-c", FETCH, json.dumps(each)]
    done = subprocess.run(command, capture_output=True, text=True, env=plain, check=True)
    assert "Traceback" not in done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(wanted), done.stderr
    return found


def test_what_is_needed_is_fetched_once_and_no_pickle(hub, tmp_path):
    endpoint, asked = hub
    offline, unreachable = ("org/name", endpoint, {"HF_HUB_OFFLINE": "1"}), ("org/name", "http://127.0.0.1:9", {})
    pinned = f"org/name@{COMMIT}", "http://127.0.0.1:9", {}
    first, *others = fetch(tmp_path, ("org/name", endpoint, {}), offline, unreachable, pinned)
    name, *files = first
    assert (name, set(files)) == (f"org/name@{COMMIT}", WANTED)
    assert not [path for path in asked if ".bin" in path or "onnx" in path]
    assert others == [first] * 3


def test_a_revision_is_its_commit_and_an_old_name_is_one_without_an_organisation(hub, tmp_path):
    typed = ("org/name@v1", "org/name@refs/pr/1", "name@v1")
    caches = [{"HF_HOME": str(tmp_path / str(number))} for number in range(3)]
    wanted = [(name, hub[0], cache) for name, cache in zip(typed, caches, strict=True)]
    *found, old = fetch(tmp_path, *wanted, ("name", hub[0], {}))
    for asked, (name, *files) in zip(typed, found, strict=True):
        assert (name, set(files)) == (f"{asked.partition('@')[0]}@{OLD_COMMIT}", WANTED)
    assert old[0] == f"name@{COMMIT}"


def test_what_cannot_be_had_is_refused_by_name(hub, tmp_path):
    endpoint, _ = hub
    wanted = (
        ("org/other", endpoint, {}),
        ("org/name", "http://127.0.0.1:9", {}),
        ("org/name", endpoint, {"HF_HUB_OFFLINE": "1"}),
        ("org/name@v2", endpoint, {}),
        ("org--name", endpoint, {}),
        ("org/name", "no address", {}),
        ("org/name", endpoint, {"HTTP_PROXY": "http://127.0.0.1:9"}),
        ("org/name", endpoint, {"HTTP_PROXY": "ftp://127.0.0.1"}),
    )
    for (name, *_), said in zip(wanted, fetch(tmp_path / "empty", *wanted), strict=True):
        assert f"init_from={name}: no such directory, and not to be had from the Hugging Face hub" in said


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


def test_a_network_that_is_not_ours_is_refused_before_its_weights_are_fetched(hub, tmp_path, monkeypatch):
    url, asked = hub
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    releases = ("mistralai/Mixtral-8x7B-v0.1", "TheBloke/Llama-2-7B-GPTQ", "microsoft/Phi-3-mini-128k-instruct")
    files = [REPOSITORY["config.json"], *(json.dumps(REFUSED[name][0]).encode() for name in releases)]
    rules = ["peft_type=None: only LORA is read", *(REFUSED[name][1] for name in releases)]
    for number, (file, rule) in enumerate(zip(files, rules, strict=True)):
        monkeypatch.setitem(REPOSITORY, "config.json", file)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / str(number)))
        with pytest.raises(ConfigError, match=f"config.json: {re.escape(rule)}"):
            find_source("org/name", first=True)
        monkeypatch.delitem(REPOSITORY, "adapter_config.json", raising=False)
    assert any(path.endswith("/config.json") for path in asked)
    assert not any(path.endswith((".safetensors", ".index.json")) for path in asked)

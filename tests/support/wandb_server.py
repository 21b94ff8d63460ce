"""What tests of W&B need: a server of its protocol in this process, and a reader of its own files."""

import gzip
import json
import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ENTITY = {"id": "e", "name": "me"}


class WandbServer(ThreadingHTTPServer):
    """Knows one run: takes its rows and its summary, gives the summary back to who resumes it, can fall silent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.exists = False
        self.rows: list[dict] = []
        self.summary: dict = {}
        self.asked: list[str] = []  # names of the queries
        self.uploaded: list[str] = []  # names of the files
        self.silent = threading.Event()
        self.refuses = False  # whether every key is wrong
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request, client_address) -> None:
        """Say nothing of connections that W&B resets."""

    def answer(self, query: str, variables: dict) -> dict:
        """Return the data of a GraphQL answer."""
        name = query.split("(")[0].split("{")[0].split()[-1]
        self.asked.append(name)
        project = {"id": "p", "name": "headwater", "entity": ENTITY}
        if name == "RunResumeStatus":
            return {"model": project | {"bucket": self._stored(variables["name"]) if self.exists else None}}
        if name == "UpsertBucket":
            inserted, self.exists = not self.exists, True
            run = {"id": "r", "name": variables["name"], "displayName": "", "project": project}
            return {"upsertBucket": {"bucket": run, "inserted": inserted}}
        if name == "CreateRunFiles":
            files = [{"name": file, "uploadUrl": f"{self.url}/upload/{file}"} for file in variables["files"]]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        if name == "Viewer":
            return {"viewer": {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}
        return {}

    def stream(self, files: dict) -> None:
        """Take what a run streams: lines of files, from an offset on."""
        for name, chunk in files.items():
            content = [json.loads(line) for line in chunk["content"]] if name.startswith("wandb-") else []
            if name == "wandb-history.jsonl":
                self.rows[chunk["offset"] :] = content
            elif name == "wandb-summary.json":
                self.summary = content[-1]

    def _stored(self, name: str) -> dict:
        return {
            "id": "r",
            "name": name,
            "config": "{}",
            "wandbConfig": '{"t": {}}',  # without it a run counts as not started
            "summaryMetrics": json.dumps(self.summary),
            "historyTail": json.dumps([json.dumps(row) for row in self.rows[-1:]]),
            "historyLineCount": len(self.rows),
            "eventsTail": "[]",
            "eventsLineCount": 0,
            "logLineCount": 0,
            "tags": [],
        }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WandbServer

    def do_POST(self) -> None:
        raw = self._body()
        body = json.loads(gzip.decompress(raw) if self.headers.get("content-encoding") == "gzip" else raw)
        if self.server.refuses:
            self._reply({"errors": [{"message": "permission denied"}]}, 401)
        elif self.path == "/graphql":
            self._reply({"data": self.server.answer(body["query"], body.get("variables") or {})})
        else:
            self.server.stream(body.get("files") or {})
            self._reply({})

    def do_PUT(self) -> None:
        self._body()
        self.server.uploaded.append(self.path.removeprefix("/upload/"))
        self._reply({})

    def _body(self) -> bytes:
        raw = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.server.silent.is_set():
            threading.Event().wait()  # in a daemon thread
        return raw

    def _reply(self, body: dict, status: int = 200) -> None:
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, format, *args) -> None:
        pass


def offline_files(run: Path) -> list[Path]:
    """Return the .wandb files of a run directory's offline runs, oldest first."""
    return sorted((run / "wandb").glob("offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns)


def wandb_records(path: Path) -> Iterator:
    """Yield the protobuf records of a .wandb file, framed as LevelDB's log: blocks of 32 KiB, CRC, length, kind."""
    from wandb.proto.wandb_internal_pb2 import Record

    data = path.read_bytes()
    assert data[:4] == b":W&B"
    at, whole = 7, b""
    while at < len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
        _, length, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            yield Record.FromString(whole)
            whole = b""


def of_kind(path: Path, kind: str) -> list:
    """Return the records of one kind of a .wandb file."""
    return [getattr(record, kind) for record in wandb_records(path) if record.WhichOneof("record_type") == kind]


def rows(path: Path) -> list[dict]:
    """Return the rows of the history in a .wandb file."""
    history = of_kind(path, "history")
    return [{(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in row.item} for row in history]


def losses(history: list[dict]) -> list[tuple[str, int, float]]:
    """Return (split, step, loss) of rows, in their order."""
    return [
        ("train", row["train/step"], row["train/loss"])
        if "train/loss" in row
        else ("validation", row["train/step"], row["eval/loss"])
        for row in history
    ]

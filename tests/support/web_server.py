"""A web server whose faults a test chooses: no ranges, connections that drop, passwords, folders without a list."""

import base64
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, unquote, urlsplit


class WebServer:
    """Files by path, and what was asked of them."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files  # "/books/a.txt" -> its bytes
        self.ranges = True  # whether it sends parts of a file
        self.etags = True
        self.drop_after: int | None = None  # bytes of an answer after which the connection breaks
        self.drops_left = 10**9  # connections that still break
        self.login: str | None = None  # "user:password" that it asks for
        self.query: str | None = None  # that it asks for
        self.asked: list[tuple[str, str, str]] = []  # method, path, range
        self.url = ""

    def gets(self, path: str) -> int:
        """How many times the content of a file was asked for."""
        return sum(asked[:2] == ("GET", path) for asked in self.asked)


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[WebServer]:
    """Serve files on a free port of this machine."""
    server = WebServer(files)

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def log_message(self, *_):
            pass

        def answer(self, *, body):
            parts = urlsplit(self.path)
            path = unquote(parts.path)
            server.asked.append((self.command, path, self.headers.get("Range", "")))
            login = base64.b64encode((server.login or "").encode()).decode()
            if server.login and self.headers.get("Authorization") != f"Basic {login}":
                return self.send_error(401)
            if server.query is not None and parts.query != server.query:
                return self.send_error(403)
            if path not in server.files:
                return self.folder(path, body)
            data, start = server.files[path], 0
            if server.ranges and (wanted := self.headers.get("Range")):
                start = int(wanted.removeprefix("bytes=").partition("-")[0])
                if start >= len(data):
                    return self.send_error(416)
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(data) - start))
            if server.etags:
                self.send_header("ETag", f'"{hash(data):x}"')
            if server.ranges:
                self.send_header("Accept-Ranges", "bytes")
            self.end_headers()
            if not body:
                return None
            data = data[start:]
            if server.drop_after is not None and len(data) > server.drop_after and server.drops_left:
                server.drops_left -= 1
                data = data[: server.drop_after]
                self.close_connection = True
            self.wfile.write(data)
            return None

        def folder(self, path, body):
            inside = {name.removeprefix(path.rstrip("/") + "/") for name in server.files if name.startswith(path)}
            if not inside or path + "/" in server.files:
                return self.send_error(404)
            if not path.endswith("/"):
                self.send_response(301)
                self.send_header("Location", f"{self.path}/")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            names = sorted({name.partition("/")[0] + ("/" if "/" in name else "") for name in inside})
            page = "".join(f'<li><a href="{quote(name)}">{name}</a></li>' for name in ["../", *names]).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            if body:
                self.wfile.write(page)
            return None

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.02,))
        thread.start()
        server.url = f"http://127.0.0.1:{http.server_port}"
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()

"""Files of web servers, as a file system of fsspec: read from any byte on, without holding more than a block.

Holds the protocol; retrying and credentials are in `remote`. fsspec's own file system for HTTP needs aiohttp, which
nothing else here does, and reads a file whole where a server cannot send a part of it. Free of torch.
"""

from __future__ import annotations

import base64
import io
import re
from http.client import HTTPResponse
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote, unquote, urldefrag, urljoin, urlsplit, urlunsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from fsspec.spec import AbstractFileSystem

TIMEOUT_S = 60  # without a byte
SKIPPED_BYTES = 2**20  # ahead in a file, rather read than asked for anew
LISTING_BYTES = 2**26  # of an HTML page that lists a folder, at most

_LINK = re.compile(rb"""<a\s[^>]*?href\s*=\s*["']([^"']+)""", re.IGNORECASE)
_MEANING = re.compile("%(25|23|2F|3F)", re.IGNORECASE)  # of % # / ?
_SAFE = "%/:?=&;,+@!$'()*~[]"  # stay as they are in a URL that is quoted
_REFUSED = {401: PermissionError, 403: PermissionError, 404: FileNotFoundError, 410: FileNotFoundError}


class HttpFileSystem(AbstractFileSystem):
    """What a web server holds; paths are whole URLs."""

    protocol = ("http", "https")

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        """Return size, kind and version of a file, and whether the server sends parts of it.

        What the server does not say is None.
        """
        try:
            response = _ask(path, method="HEAD")
        except OSError:  # also signed URLs, and servers, that allow nothing but GET
            response = _ask(path)
        with response:
            length, is_folder = response.headers["Content-Length"], urlsplit(response.url).path.endswith("/")
            return {
                "name": path,
                "type": "directory" if is_folder else "file",
                "size": length and int(length),
                "ETag": response.headers["ETag"],
                "Last-Modified": response.headers["Last-Modified"],
                "ranges": response.headers["Accept-Ranges"] == "bytes",
            }

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        """List what the page of a folder links to in that folder."""
        base = path.rstrip("/") + "/"
        with _ask(base) as response:
            links = _LINK.findall(response.read(LISTING_BYTES))
        targets = {_unquoted(urldefrag(urljoin(base, link.decode(errors="replace"))).url) for link in links}
        names = [target.removeprefix(_unquoted(base)) for target in targets]
        found = [
            {"name": base + name.rstrip("/"), "type": "directory" if name.endswith("/") else "file"}
            for name in sorted(names)
            if re.fullmatch(r"[^/?]+/?", name)
        ]
        return found if detail else [entry["name"] for entry in found]

    def _open(self, path: str, *args: Any, **kwargs: Any) -> Any:
        return HttpFile(path, self.info(path)["size"])


class HttpFile(io.RawIOBase):
    """One file, read as it comes; a jump asks the server again."""

    def __init__(self, url: str, size: int) -> None:
        """Ask for nothing yet. `size` is in bytes."""
        self._url, self._size = url, size
        self._position = 0
        self._response: HTTPResponse | None = None
        self._at = 0  # byte that the response gives next

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        if not 0 <= self._position - self._at <= SKIPPED_BYTES:
            self._drop()
        if self._response is None:
            self._response = _ask(self._url, self._position)
            partial = self._response.status == 206
            self._at = self._position if partial else 0  # a server without ranges begins at the beginning
        while self._at < self._position:
            skipped = len(self._response.read(min(self._position - self._at, SKIPPED_BYTES)))
            if not skipped:
                return 0
            self._at += skipped
        count = self._response.readinto(buffer)
        self._at += count
        self._position += count
        return count

    def close(self) -> None:
        self._drop()
        super().close()

    def _drop(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None


class _Redirects(HTTPRedirectHandler):
    """Redirects that keep the method and, on the same host, the password."""

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Request | None:
        new = super().redirect_request(req, fp, code, msg, headers, newurl)
        if new is not None:
            new.method = req.method
            secret = req.get_header("Authorization")
            if secret and new.host == req.host:
                new.add_unredirected_header("Authorization", secret)
        return new


def _unquoted(url: str) -> str:
    """Return a URL with its letters as they are, but for the signs that would mean something else."""
    return unquote(_MEANING.sub(r"%25\1", url))


def _ask(url: str, start: int = 0, *, method: str = "GET") -> HTTPResponse:
    """Return the answer to a request for a file, or for the bytes from `start` on.

    Raises `FileNotFoundError` or `PermissionError` for what the server does not have or give, other `OSError`s.
    """
    parts = urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    address = urlunsplit(parts._replace(netloc=host, path=quote(parts.path, _SAFE), query=quote(parts.query, _SAFE)))
    request = Request(address, method=method)
    if start:
        request.add_header("Range", f"bytes={start}-")
    if user:
        login = unquote(user if ":" in user else f"{user}:")
        secret = base64.b64encode(login.encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {secret}")
    try:
        return build_opener(_Redirects).open(request, timeout=TIMEOUT_S)
    except HTTPError as error:
        error.close()
        raise _REFUSED.get(error.code, OSError)(f"the server answers {error.code} {error.reason}") from None

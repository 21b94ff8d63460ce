"""Files of remote stores, through fsspec: what a URL names, and its bytes, in spite of connections that break.

Holds no secret in a name: a file is called by its URL without credentials, which this process keeps in memory. Free of
torch.
"""

from __future__ import annotations

import io
import logging
import posixpath
import re
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeVar, cast
from urllib.parse import urlsplit, urlunsplit

from pretrain.data.sources.patterns import Entry, LeftOut, matches, split
from pretrain.errors import ConfigError, DataError
from pretrain.errors.redaction import redacted

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

T = TypeVar("T")

log = logging.getLogger(__name__)

WAITS_S = [0.5, 1.0, 2.0, 4.0]  # between attempts that all fail at the same byte
BUFFER_BYTES = 2**20  # read at a time

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_PASSWORD = re.compile(r"(?<=://)[^/?#@]*:[^/?#]*@")
_SIGNATURE = re.compile(r"(x-(amz|goog)-)?(sig|signature)=", re.IGNORECASE)
_SECRET = re.compile(r"[^=]*(token|key|secret|passw(or)?d|pwd|auth|credentials?)=", re.IGNORECASE)
_SERVER = re.compile(r"https?://[^/]*", re.IGNORECASE)
# The first of these that a store gives of a file tells whether it is still the same.
_VERSIONS = ("ETag", "etag", "blob_id", "sha", "md5Hash", "checksum", "Last-Modified", "LastModified")
_VERSIONS += ("mtime", "modified", "modify", "modificationTime", "updated", "created")

_addresses: dict[str, str] = {}  # name of a file -> its URL, where that has credentials


class RemoteFacts(NamedTuple):
    """A file of a remote store."""

    name: str  # its URL without credentials
    size: int  # bytes
    version: str  # changes with its content


def is_remote(path: str) -> bool:
    """Return whether this is the URL of a remote store, such as s3://bucket/key."""
    return _SCHEME.match(path) is not None


def addresses() -> dict[str, str]:
    """Return the URLs with credentials of the files that this process has named, by name, to `remember` elsewhere."""
    return dict(_addresses)


def remember(known: dict[str, str]) -> None:
    """Take over what another process knows."""
    _addresses.update(known)


def without_credentials(url: str) -> str:
    """Return a URL without a password, the query of a signed URL, and other parameters that look secret.

    Raises `ConfigError` for one whose password cannot be told from its host.
    """
    url = _PASSWORD.sub("", url)
    if not _SERVER.match(url):
        return url
    parts = urlsplit(url)
    try:
        _ = parts.port
    except ValueError:
        raise ConfigError("a URL: its host is not readable; in a password, / is %2F and @ is %40") from None
    query = parts.query.split("&")
    kept = [] if any(_SIGNATURE.match(each) for each in query) else [each for each in query if not _SECRET.match(each)]
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="&".join(kept), fragment=""))


def public_name(url: str) -> str:
    """Return a URL without its credentials, under which this process opens it from now on."""
    if (name := without_credentials(url)) != url:
        _addresses[name] = url
    return name


def find_remote(url: str, key: str, left_out: LeftOut) -> list[RemoteFacts]:
    """Return the files that a URL, typed as the setting `key`, names: itself, or those that it matches as a pattern.

    Raises `ConfigError` for one that names none, `DataError` for a store that does not answer.
    """
    name = public_name(url)
    store, path = _store(url, key)
    store.invalidate_cache()
    tree = _RemoteTree(store, name)
    facts = tree.facts(path)
    if facts is None:
        found = dict(_matches(tree, path, key, left_out))
    elif facts["type"] != "directory":
        found = {path: facts}
    elif _SERVER.match(url):  # whose pages may link to anything
        raise ConfigError(f"{key}: {name} is a folder; name its files: {name.rstrip('/')}/**/*")
    else:
        found = dict(_matches(tree, f"{path.rstrip('/')}/**/*", key, left_out))
    if not found:
        raise ConfigError(f"{key}: {name} matches no file; correct the address or the pattern{left_out.said()}")
    scheme, _, _ = url.partition("://")
    before = url.removesuffix(path) if url.endswith(path) else f"{scheme}://"  # paths of some stores have no host
    return [_described(tree, file, found[file], public_name(f"{before}{file}")) for file in sorted(found)]


def _matches(tree: _RemoteTree, path: str, key: str, left_out: LeftOut) -> Iterator[tuple[str, dict[str, Any]]]:
    server = _SERVER.match(path)
    if server and "?" in path:  # the query of a URL, no sign of a pattern
        return
    root = server[0] if server else "/" * path.startswith("/")
    folder, parts = split(tree, root, path.removeprefix(root).lstrip("/"), key)
    if parts and tree.exists(folder):
        yield from matches(tree, folder, parts, left_out)


def _described(tree: _RemoteTree, path: str, facts: dict[str, Any], name: str) -> RemoteFacts:
    """Return size and version of a file. Raises `DataError` where the store does not know the size."""
    if facts.get("size") is None:
        facts = tree.facts(path) or facts
    if facts.get("size") is None:
        raise DataError(f"{name}: the server does not say its size; download it, and name the file that you have then")
    version = next((str(facts[fact]) for fact in _VERSIONS if facts.get(fact)), "")
    if not version:
        log.warning("%s: only its size tells whether it changes, as its server gives neither version nor time", name)
    return RemoteFacts(name, facts["size"], version)


def open_remote(name: str) -> BinaryIO:
    """Open a file, seekable. It, and reading it, raise `DataError` for one that cannot be read."""
    return cast("BinaryIO", io.BufferedReader(_RemoteFile(name), BUFFER_BYTES))


def has_ranges(name: str) -> bool:
    """Return whether the store gives parts of a file without all before them."""
    store, path = _store(_addresses.get(name, name), name)
    return _persistent(name, lambda: store.info(path)).get("ranges", True)


class _RemoteTree:
    """The folders of a store."""

    def __init__(self, store: AbstractFileSystem, name: str) -> None:
        self._store, self._name = store, name

    def entries(self, folder: str) -> list[Entry]:
        found = {facts["name"].rstrip("/"): facts for facts in self._list(folder)}
        found.pop(folder.rstrip("/"), None)  # stores that keep folders as files list them in themselves
        return [
            Entry(posixpath.basename(path), facts["type"] == "directory", facts=facts) for path, facts in found.items()
        ]

    def exists(self, path: str) -> bool:
        return self.facts(path) is not None

    def identity(self, folder: str) -> Hashable:
        return folder

    def _list(self, folder: str) -> list[dict[str, Any]]:
        return _persistent(self._name, lambda: self._store.ls(folder, detail=True))

    def facts(self, path: str) -> dict[str, Any] | None:
        """Return what the store knows of a file or folder, None if there is none."""

        def ask() -> dict[str, Any] | None:
            with suppress(FileNotFoundError):
                return self._store.info(path)
            return None

        return _persistent(self._name, ask)


class _RemoteFile(io.RawIOBase):
    """A file that is opened again, where it was, when its connection breaks."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._store, self._path = _store(_addresses.get(name, name), name)
        self._file: Any = None
        self._position = 0
        self._size: int = _persistent(name, self._connect)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        wanted = max(min(len(buffer), self._size - self._position), 0)
        data = _persistent(self._name, lambda: self._read(wanted)) if wanted else b""
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        self._drop()
        super().close()

    def _connect(self) -> int:
        """Open the file and return its size."""
        self._file = self._store.open(self._path, "rb")
        return self._file.seek(0, io.SEEK_END)

    def _read(self, count: int) -> bytes:
        try:
            if self._file is None:
                self._connect()
            assert self._file is not None
            self._file.seek(self._position)
            if data := self._file.read(count):
                return data
            raise OSError(f"it ends at byte {self._position} of {self._size}")
        except BaseException:
            self._drop()
            raise

    def _drop(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with suppress(Exception):  # of a connection that is gone
                file.close()


def _persistent(name: str, call: Callable[[], T]) -> T:
    """Return what a call to a store returns, tried again a few times. Raises `DataError` when all have failed."""
    for wait in [*WAITS_S, None]:
        try:
            return call()
        except Exception as error:  # each store has a library of its own
            if wait is None or isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
                raise _unreadable(name, error) from None
            time.sleep(wait)
    raise AssertionError("unreachable")


def _unreadable(name: str, error: Exception) -> DataError:
    said = " ".join(str(error).replace(_addresses.get(name, name), name).split()) or type(error).__name__
    rule = "look at the network and at your credentials for it, and run again: what is prepared is kept"
    return DataError(f"{name}: cannot be read ({redacted(said)}); {rule}")


def _store(url: str, key: str) -> tuple[AbstractFileSystem, str]:
    """Return the file system of a URL and the path in it. Raises `ConfigError` for one that there is no package for."""
    from fsspec.core import url_to_fs
    from fsspec.registry import known_implementations

    scheme = _SCHEME.match(url)
    assert scheme is not None, url
    protocol = scheme[1].lower()
    if protocol in ("http", "https"):
        from pretrain.data.sources.http_files import HttpFileSystem

        return HttpFileSystem(), url
    try:
        return url_to_fs(url)
    except ImportError as error:
        package = known_implementations[protocol]["class"].partition(".")[0]
        package = "what it names" if package == "fsspec" else package
        raise ConfigError(f"{key}: {protocol}:// is not installed here ({error}); pip install {package}") from None
    except ValueError as error:
        raise ConfigError(f"{key}: {without_credentials(url)}: {redacted(str(error))}; correct it") from None
    except Exception as error:  # some stores connect at once
        raise _unreadable(without_credentials(url), error) from None

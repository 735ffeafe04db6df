"""Files behind a URL (`s3://`, `gs://`, `https://`, `hf://` …, through fsspec), read in place and written whole.

`RemotePath` has what readers of indexes and media, and the cache, need of `pathlib.Path`, so that they ask not which of
the two they have (`place` decides). Each request has a time limit and is made again after a pause, which grows; a body
shorter than announced is a failed request, not a short file. A file is written with one request: it is there, complete,
or not at all. What a server refuses in the end is `Unreachable` and stops the run: were it recorded as a damaged clip,
it would be left out for ever. Credentials come from the libraries' own places alone. fsspec is imported where a URL is
met, so decoders of local media start without it. The price: a clip, and a file that is written, is held in memory
whole, and a folder's listing takes some 2 KB per object while it is read.
"""

from __future__ import annotations

import fnmatch
import hashlib
import io
import os
import queue
import random
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar
from urllib.parse import quote, unquote, urlsplit

from balance.errors import UserError

LIMIT_S = 120.0  # after which a request is not made again
_REQUEST_LIMIT_S = 60.0
_ATTEMPTS = 6
_FIRST_PAUSE_S = 0.5  # doubled each time, half to one and a half of it
_GET_BYTES = 32 << 20  # per request: within its limit at half a MiB per second
_LEAST_BYTES_PER_S = _GET_BYTES / _REQUEST_LIMIT_S  # of what is written, which is one request whatever its size
_BUFFER_BYTES = 1 << 20
_THREADS = 16  # connections at once while files are listed

_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")
_HTTP = ("http", "https")
_USER_IS_NO_SECRET = ("abfs", "abfss")  # container@account
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "http": "http", "https": "http", "hf": "hf"}
# This module makes requests anew itself.
_OPTIONS: dict[str, dict[str, Any]] = {"s3": {"config_kwargs": {"retries": {"total_max_attempts": 1}}}}
# What tells one version of a file from another, the surest first, as the libraries name it.
_VERSIONS = (
    *("ETag", "etag", "blob_id", "md5Hash", "Content-MD5"),
    *("LastModified", "last_modified", "Last-Modified", "mtime", "updated", "created"),
)
_HOPELESS = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "ParamValidationError")

T = TypeVar("T")


class Unreachable(UserError):
    """A server that gave no answer, or not the whole of it, however often it was asked."""


def is_url(text: str) -> bool:
    """Whether this names a file or folder behind a URL; `file://` is one on disk."""
    return _URL.match(text) is not None and not text.startswith("file://")


def place(given: str | os.PathLike[str] | RemotePath) -> AnyPath:
    """A path on disk, or behind a URL."""
    if isinstance(given, RemotePath):
        return given
    text = os.fspath(given)
    if is_url(text):
        return RemotePath(text.rstrip("/"))
    return Path(unquote(urlsplit(text).path) if text.startswith("file://") else os.path.expanduser(text))


def check_url(key: str, value: str | None) -> None:
    """ValueError for a URL that holds credentials, or may: they would stand in logs and manifest. key: for messages."""
    if value is None or not is_url(value):
        return
    parts = urlsplit(value)
    user, at, _ = parts.netloc.rpartition("@")
    if at and (":" in user or parts.scheme not in _USER_IS_NO_SECRET):
        raise ValueError(
            f"{key}={redacted(value)}: a URL must not hold a user or password. Leave them out and log in the way of "
            "the library (for s3 AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"
        )
    if "?" in value:
        raise ValueError(
            f"{key}={redacted(value)}: a URL must not hold a query (?…), such as a token or a signature. Leave it out "
            "and log in the way of the library"
        )


def redacted(text: str) -> str:
    """The text without what may be secret in the URLs in it: user, password, query."""
    text = re.sub(r"://[^/\s'\"]*@", "://…@", text)
    return re.sub(r"\?[^\s'\"]+", "?…", text)


@dataclass(frozen=True, slots=True, order=True)
class RemotePath:
    """A file or folder behind a URL, without a slash at its end; of http(s) the part added with `/` is quoted."""

    url: str

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> RemotePath:
        plain = name.strip("/")
        return RemotePath(f"{self.url}/{quote(plain) if self.scheme in _HTTP else plain}") if plain else self

    @property
    def scheme(self) -> str:
        return self.url.partition("://")[0].lower()

    @property
    def name(self) -> str:
        last = self.url.rpartition("/")[2]
        return unquote(last) if self.scheme in _HTTP else last

    @property
    def stem(self) -> str:
        return self.name.rpartition(".")[0] or self.name

    @property
    def suffix(self) -> str:
        stem, dot, suffix = self.name.rpartition(".")
        return dot + suffix if stem else ""

    @property
    def parent(self) -> RemotePath:
        above = self.url.rpartition("/")[0]
        return RemotePath(above) if not above.endswith("/") else self

    def with_name(self, name: str) -> RemotePath:
        return self.parent / name

    def absolute(self) -> RemotePath:
        return self

    def relative_to(self, folder: RemotePath) -> str | None:
        """The path below a folder; None where it lies elsewhere."""
        start, url = folder.url + "/", self.url
        if self.scheme in _HTTP:  # servers quote what they list in their own way
            start, url = unquote(start), unquote(url)
        return url.removeprefix(start) if url.startswith(start) else None

    def is_file(self) -> bool:
        info = self._info()
        return info is not None and info["type"] == "file"

    def exists(self) -> bool:
        return self.is_file() or self.is_dir()

    def is_dir(self) -> bool:
        """Whether anything lies in it: object stores have no empty folders."""
        return next(self._entries(), None) is not None

    def names(self, kind: Literal["file", "directory"]) -> list[str]:
        """The names of the files or folders in this folder, unsorted; none where there is no such folder."""
        return [name for name, entry in self._entries() if entry["type"] == kind]

    def walk(self) -> list[str]:
        """The paths of all files below this folder, relative to it, unsorted."""
        found = self._ask(lambda files: files.find(self.url))
        paths = (RemotePath(self._with_scheme(name)).relative_to(self) for name in found)
        return [path for path in paths if path is not None]

    def glob(self, pattern: str) -> Iterator[RemotePath]:
        """The files in this folder with such a name, unsorted; only those that begin with what precedes the first `*`
        are listed, where the server can."""
        prefix = pattern.partition("*")[0]
        try:
            found = self._ask(lambda files: files.find(self.url, prefix=prefix))
        except (FileNotFoundError, NotADirectoryError):
            return
        for name in found:
            path = RemotePath(self._with_scheme(name))
            if path.relative_to(self) == path.name and fnmatch.fnmatchcase(path.name, pattern):
                yield path

    def read_bytes(self, size: int = -1) -> bytes:
        """The whole file. size: in bytes, as it was listed, −1 where it was not; then a length that differs is noticed
        whatever the server says. Raises FileNotFoundError, Unreachable."""
        if size <= 0:
            return self._ask(lambda files: _bytes(files.cat_file(self.url)))
        # The byte behind the end is asked for, too: were it there, the file would be another by now.
        starts = range(0, size - _GET_BYTES, _GET_BYTES)
        data = b"".join(self.read_range(start, start + _GET_BYTES) for start in starts)
        return data + self._read_end(len(data), size)

    def read_range(self, start: int, stop: int, connection: Any = None) -> bytes:
        """The bytes start … stop, which must be there. connection: of `connection()`, where threads share one. Raises
        FileNotFoundError, Unreachable."""
        if stop <= start:
            return b""
        return self._ask(
            lambda files: _whole(files.cat_file(self.url, start=start, end=stop), stop - start), connection
        )

    def read_whole(self, connection: Any = None) -> bytes:
        """The whole file, whose length is asked for first, so that a short answer is noticed. connection: as of
        `read_range`. Raises FileNotFoundError, Unreachable."""
        size = int(self._ask(lambda files: files.info(self.url), connection)["size"])
        starts = range(0, size, _GET_BYTES)
        return b"".join(self.read_range(start, min(start + _GET_BYTES, size), connection) for start in starts)

    def write_bytes(self, data: bytes) -> None:
        """Make or replace the file with one request, and look whether all of it arrived. Raises Unreachable."""

        def write(files: Any) -> None:
            files.pipe_file(self.url, data)
            if (size := int(files.info(self.url)["size"])) != len(data):
                raise _CutShort(f"{size} of {len(data)} bytes arrived")

        try:
            self._ask(write, num_bytes=len(data))
        except (FileNotFoundError, NotADirectoryError):
            raise Unreachable(
                f"{self.url} cannot be written: there is no such bucket, or it is gone. What is finished is kept: make "
                "it, or name another, and run the same command again"
            ) from None

    def unlink(self, *, missing_ok: bool = False) -> None:
        """Remove the file. Raises FileNotFoundError, Unreachable."""
        try:
            self._ask(lambda files: files.rm_file(self.url))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def remove(self, names: Sequence[str]) -> None:
        """Remove these files of this folder. Raises FileNotFoundError, Unreachable."""
        if names:
            self._ask(lambda files: files.rm([(self / name).url for name in names]))

    def mkdir(self, *, parents: bool, exist_ok: bool) -> None:
        """Nothing: a file makes its own folder."""

    def open(self, mode: Literal["rb"] = "rb") -> io.BufferedReader | io.BytesIO:
        """The file, seekable; what is read of it is fetched. Raises FileNotFoundError, Unreachable."""
        size = self._ask(lambda files: files.info(self.url)).get("size")
        if size is None:  # an http server that sends it as it is made
            return io.BytesIO(self.read_bytes())
        return io.BufferedReader(_Ranges(self, int(size)), _BUFFER_BYTES)

    def stamps(self, paths: Iterable[str]) -> dict[str, tuple[int, int]]:
        """(size in bytes, a number that another version of the file does not have) of each of these paths below this
        folder that is there: a listing per folder, or, of http(s), which has none, a HEAD per file."""
        folders: dict[str, list[str]] = {}
        for path in paths:
            folders.setdefault(path.rpartition("/")[0], []).append(path)
        files = self.connection()

        def in_folder(folder: str) -> dict[str, tuple[int, int]]:
            there = {name: _stamp(entry) for name, entry in (self / folder)._entries(files)}
            names = ((path, path.rpartition("/")[2]) for path in folders[folder])
            return {path: there[name] for path, name in names if name in there}

        def one_by_one(some: Sequence[str]) -> dict[str, tuple[int, int]]:
            asked = ((path, (self / path)._info(files)) for path in some)
            return {path: _stamp(info) for path, info in asked if info is not None}

        with ThreadPoolExecutor(_THREADS) as threads:
            if self.scheme in _HTTP:
                flat = [path for some in folders.values() for path in some]
                answers = threads.map(one_by_one, (flat[at : at + 100] for at in range(0, len(flat), 100)))
            else:
                answers = threads.map(in_folder, folders)
            return {path: stamp for some in answers for path, stamp in some.items()}

    def _info(self, files: Any = None) -> Mapping[str, Any] | None:
        """What the library knows of it; None where there is no such file or folder."""
        try:
            return self._ask(lambda files: dict(files.info(self.url)), files)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _read_end(self, start: int, size: int) -> bytes:
        def read(files: Any) -> bytes:
            data = _bytes(files.cat_file(self.url, start=start, end=size + 1))
            if len(data) > size - start:
                raise Unreachable(f"{self.url} is larger than when it was listed: run the same command again")
            return _whole(data, size - start)

        return self._ask(read)

    def _entries(self, files: Any = None) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """(name, what the library knows of it) of all in this folder."""
        try:
            found = self._ask(lambda files: files.ls(self.url, detail=True), files)
        except (FileNotFoundError, NotADirectoryError):
            return
        for entry in found:
            path = RemotePath(self._with_scheme(entry["name"]).rstrip("/"))
            if path.relative_to(self) == path.name:  # some libraries list the folder itself
                yield path.name, entry

    def _with_scheme(self, name: str) -> str:
        """A file's name as fsspec gives it, as a URL in the form of this one."""
        if "://" in name:
            return name
        return f"{self.url.partition('://')[0]}://{name.lstrip('/')}"

    def connection(self) -> Any:
        """fsspec's file system for this URL. It keeps one per process and thread, with its connections."""
        import fsspec

        try:
            return fsspec.filesystem(self.scheme, use_listings_cache=False, **_OPTIONS.get(self.scheme, {}))
        except ImportError as error:
            raise UserError(f"{self.url}: {_what_is_absent(self.scheme, error)}") from None
        except ValueError as error:
            known = ", ".join(f"{scheme}://" for scheme in _EXTRAS)
            raise UserError(f"{self.url}: {redacted(str(error))}; {known} and others of fsspec are known") from None

    def _ask(self, request: Callable[[Any], T], files: Any = None, num_bytes: int = 0) -> T:
        """`request(file system)`, again while it fails and time is left. num_bytes: that it sends. Raises
        FileNotFoundError, Unreachable."""
        limit_s = _REQUEST_LIMIT_S + num_bytes / _LEAST_BYTES_PER_S
        files = self.connection() if files is None else files
        started = time.monotonic()
        attempt = 0
        while True:
            attempt += 1
            try:
                return _within(lambda: request(files), limit_s)
            except UserError:
                raise
            except Exception as raised:
                error = _behind(raised)
            if isinstance(error, (FileNotFoundError, NotADirectoryError)):
                raise error
            waited_s = time.monotonic() - started
            if _is_hopeless(error) or attempt == _ATTEMPTS or waited_s > LIMIT_S - _REQUEST_LIMIT_S:
                asked = "" if attempt == 1 else f", asked {attempt} times in {waited_s:.0f} s"
                raise Unreachable(f"{self.url}: {_words(error)}{asked}. {_remedy(error)}") from None
            time.sleep(_FIRST_PAUSE_S * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))


AnyPath: TypeAlias = Path | RemotePath


class _Ranges(io.RawIOBase):
    """A remote file of known size, read where it lies."""

    def __init__(self, path: RemotePath, size: int) -> None:
        self._path, self._size, self._at = path, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        stop = min(self._at + min(len(buffer), _GET_BYTES), self._size)
        if stop <= self._at:
            return 0
        data = self._path.read_range(self._at, stop)
        buffer[: len(data)] = data
        self._at = stop
        return len(data)


class _CutShort(Exception):
    """A body of fewer bytes than were asked for."""


class _NoRanges(Exception):
    """A server that sends the whole file where a part of it was asked for."""


def _bytes(data: Any) -> bytes:
    return bytes(data)


def _whole(data: Any, size: int) -> bytes:
    if len(data) < size:
        raise _CutShort(f"{len(data)} of {size} bytes came")
    if len(data) > size:
        raise _NoRanges(f"the server sends {len(data)} bytes where {size} were asked for: it knows no ranges")
    return bytes(data)


def _within(call: Callable[[], T], limit_s: float) -> T:
    """What the call gives within the time limit of a request, TimeoutError after it: no library's own limit covers
    name resolution, connection and a body that trickles."""
    answers: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put((True, call()))
        except BaseException as error:
            answers.put((False, error))

    threading.Thread(target=run, daemon=True, name="request").start()
    try:
        is_well, value = answers.get(timeout=limit_s)
    except queue.Empty:
        raise TimeoutError(f"no answer within {limit_s:.0f} s") from None
    if not is_well:
        raise value
    return value  # type: ignore[no-any-return]


def _behind(error: Exception) -> Exception:
    """What an error means. fsspec says of any failed HEAD over http that there is no such file."""
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and isinstance(cause, Exception):
        is_http = type(cause).__module__.startswith("aiohttp") or isinstance(cause, (OSError, TimeoutError))
        if is_http and getattr(cause, "status", None) not in (404, 410):
            return cause
    return error


def _is_hopeless(error: Exception) -> bool:
    refused = getattr(error, "status", None) in (401, 403, 405)
    return refused or isinstance(error, (PermissionError, _NoRanges)) or type(error).__name__ in _HOPELESS


def _words(error: Exception) -> str:
    """What an error says, in a line and without secrets."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    lines = redacted(text).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200].rstrip(".")


def _remedy(error: Exception) -> str:
    if _is_hopeless(error) and not isinstance(error, _NoRanges):
        return "Log in the way of the library (docs/inputs.md), then run the same command again"
    return "What is finished is kept: run the same command again"


def _what_is_absent(scheme: str, error: ImportError) -> str:
    if scheme in _EXTRAS:
        return f"a package is absent: type pip install 'audio-balance[{_EXTRAS[scheme]}]'"
    return f"a package is absent ({str(error).splitlines()[0]})"


def _stamp(entry: Mapping[str, Any]) -> tuple[int, int]:
    """Size (0 where the server does not say it) and version."""
    version = next((entry[key] for key in _VERSIONS if entry.get(key) is not None), "")
    return int(entry.get("size") or 0), int.from_bytes(hashlib.sha1(str(version).encode()).digest()[:8]) >> 1

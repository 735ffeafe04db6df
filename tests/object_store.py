"""Servers on the loopback that give files like object stores do: moto's S3, plain http with ranges, and a proxy that
breaks answers as asked.
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
from moto.server import ThreadedMotoServer

KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "secret-testing", "AWS_DEFAULT_REGION": "us-east-1"}

# (method, path with query) -> "500", "gone", "denied", "cut" (the connection ends early), "short" (a well-formed answer
# that is not the whole), "half" (of what is sent), "hang", or None
Fault = Callable[[str, str], str | None]
ANSWERS = {
    "500": (500, b""),
    "gone": (404, b"<Error><Code>NoSuchBucket</Code><Message>The specified bucket does not exist</Message></Error>"),
    "denied": (403, b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"),
}


@dataclass
class Bucket:
    """One S3 server. env: what a process must have in its environment to reach it."""

    address: tuple[str, int]
    client: Any
    env: dict[str, str]

    def upload(self, folder: Path, prefix: str = "") -> None:
        """All files below a folder."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.client.put_object(
                    Bucket="bucket", Key=prefix + path.relative_to(folder).as_posix(), Body=path.read_bytes()
                )


@contextlib.contextmanager
def s3() -> Iterator[Bucket]:
    """A server with one empty bucket, `s3://bucket`."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        env = {**KEYS, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}
        client = boto3.client(
            "s3",
            endpoint_url=env["AWS_ENDPOINT_URL"],
            region_name="us-east-1",
            aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        )
        client.create_bucket(Bucket="bucket")
        yield Bucket((host, port), client, env)
    finally:
        server.stop()


@contextlib.contextmanager
def serving(handler: Callable[..., BaseHTTPRequestHandler]) -> Iterator[str]:
    """The URL of a server in threads of this process."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@dataclass
class Faulty:
    """A proxy before a server. fault: decides what happens to a request; without: a header that it takes out of
    requests; seen: (method, path) of all requests."""

    to: tuple[str, int]
    fault: Fault = lambda method, path: None
    hang_s: float = 3.0
    without: str = ""
    seen: list[tuple[str, str]] = field(default_factory=list)

    @contextlib.contextmanager
    def serving(self) -> Iterator[str]:
        with serving(partial(_Proxy, self)) as url:
            yield url


class _Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, faulty: Faulty, *args: Any) -> None:
        self._faulty = faulty
        super().__init__(*args)

    def _forward(self) -> None:
        faulty = self._faulty
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        faulty.seen.append((self.command, self.path))
        what = faulty.fault(self.command, self.path)
        if self.command == "HEAD" and what in ("cut", "short"):  # it has no body
            what = None
        if what == "hang":
            time.sleep(faulty.hang_s)
        if what in ANSWERS:
            status, said = ANSWERS[what]
            self.send_response(status)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said if self.command != "HEAD" else b"")
            return
        headers = {name: value for name, value in self.headers.items() if name != faulty.without}
        if what == "half" and self.command == "PUT":
            body = body[: len(body) // 2]
            sums = ("content-length", "content-md5", "x-amz-checksum", "x-amz-sdk-checksum")
            headers = {name: value for name, value in headers.items() if not name.lower().startswith(sums)}
        there = http.client.HTTPConnection(*faulty.to)
        there.request(self.command, self.path, body, headers)
        answer = there.getresponse()
        data = answer.read()
        there.close()
        self.send_response(answer.status)
        length = answer.headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(data))
        for name, value in answer.headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "server", "date"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(data) // 2) if what == "short" else length)
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(data[: len(data) // 2] if what in ("cut", "short") else data)
        if what == "cut":
            self.close_connection = True

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _forward

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _Ranges(SimpleHTTPRequestHandler):
    """Files with ranges, and neither listings nor HTTP/1.0."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        data, status = path.read_bytes(), 200
        size = len(data)
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked:
            start, stop = int(asked[1]), min(size, int(asked[2] or size) + 1)
            data, status = data[start:stop], 206
        self.send_response(status)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Last-Modified", self.date_time_string(int(os.stat(path).st_mtime)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass


def files_over_http(folder: Path) -> contextlib.AbstractContextManager[str]:
    """The URL under which a folder's files are served, with ranges and without listings."""
    return serving(partial(_Ranges, directory=str(folder)))

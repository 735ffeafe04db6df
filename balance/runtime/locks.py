"""One worker a piece of work, on file systems whose flock cannot be trusted.

A lock is a file made with O_EXCL that says who holds it (host, process, its start time, job id). A thread touches
it every 20 s. It is stale at once if its process on this host is dead, else after 5 minutes without a touch (a
preempted job comes back on another host). The price: what a lock guards must itself appear by rename and survive
being made twice. Embedding parts and neighbour files do.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path

HEARTBEAT_S = 20.0
STALE_S = 300.0


def _start_time(pid: int) -> str:
    """The kernel's start time of a process: a reused process id is not its former owner. "" if there is none, or a
    dead one that its parent has not yet waited for."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return "" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        return ""


def process_alive(pid: int, start_time: str) -> bool:
    """Whether this host runs that very process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return not start_time or not Path("/proc/self/stat").exists() or _start_time(pid) == start_time


class Lock:
    """A held lock; `release()` or leaving the `with` block gives it back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._touch, daemon=True, name=f"lock {path.name}")
        self._thread.start()

    def _touch(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            with contextlib.suppress(OSError):
                os.utime(self.path)

    def release(self) -> None:
        self._stop.set()
        with contextlib.suppress(OSError):
            self.path.unlink()

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def acquire(path: Path) -> Lock | None:
    """The lock at `path`, or None while somebody alive holds it. Breaks a stale one. OSError if not writable."""
    owner = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "start_time": _start_time(os.getpid()),
        "job": os.environ.get("SLURM_JOB_ID", ""),
    }
    for _ in range(2):
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            if not is_stale(path):
                return None
            _break(path)
            continue
        try:
            with os.fdopen(descriptor, "w") as file:
                json.dump(owner, file)
            return Lock(path)
        except BaseException:  # a signal's, too: nobody would give the lock back
            path.unlink(missing_ok=True)
            raise
    return None


def _break(path: Path) -> None:
    """Take a stale lock away. Between the look and the rename another may have broken it and made its own: that one is
    put back."""
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex}.stale")
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, aside)
        if not is_stale(aside):
            with contextlib.suppress(FileExistsError):
                os.link(aside, path)
        aside.unlink()


def is_stale(path: Path) -> bool:
    """Whether the holder is known dead, or has not been heard of for 5 minutes. A lock that is gone is not stale."""
    try:
        age_s = time.time() - path.stat().st_mtime
        text = path.read_text()
    except FileNotFoundError:
        return False
    try:
        owner = json.loads(text)
        same_host = owner["host"] == socket.gethostname()
        if same_host and not process_alive(int(owner["pid"]), str(owner["start_time"])):
            return True
    except (ValueError, KeyError, TypeError):
        pass  # half-written: its owner is writing it now, or died doing so; the age decides
    return age_s > STALE_S

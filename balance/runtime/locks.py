"""One worker a piece of work, on file systems whose flock cannot be trusted.

A lock is a file made with O_EXCL that says who holds it (host, process, its start time, job id). A thread touches
it every 20 s. It is stale at once if its process on this host is dead, else after 5 minutes without a touch (a
preempted job comes back on another host), whatever it holds. Its age is read from the file system's own clock: hosts
disagree. The price: what a lock guards must itself appear by rename and survive being made twice. Embedding parts and
neighbour files do, so a dead user's lock that this user may not remove is passed over, and behind a URL, where a driver
assigns the work, nothing is locked.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import socket
import threading
import time
from pathlib import Path

from balance.runtime import files
from balance.runtime.remote import AnyPath, RemotePath

log = logging.getLogger(__name__)

HEARTBEAT_S = 20.0
STALE_S = 300.0
_MOST_BYTES = 4096  # of a lock that says anything; ours have 200
_LARGEST_PID = 2**31 - 1  # of a C int


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
    if not 0 < pid <= _LARGEST_PID:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return not start_time or not Path("/proc/self/stat").exists() or _start_time(pid) == start_time


class Lock:
    """A held lock; `release()` or leaving the `with` block gives it back. path: None where another user's dead lock is
    passed over, or where there are no locks, so that nothing is held."""

    def __init__(self, path: Path | None) -> None:
        self._stop = threading.Event()
        self._path = path
        if path is not None:
            threading.Thread(target=self._touch, args=(path,), daemon=True, name=f"lock {path.name}").start()

    def _touch(self, path: Path) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            with contextlib.suppress(OSError):
                os.utime(path, follow_symlinks=False)

    def release(self) -> None:
        self._stop.set()
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink()

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def acquire(path: AnyPath) -> Lock | None:
    """The lock at `path`, or None while somebody alive holds it. Breaks a stale one. OSError if not writable."""
    if isinstance(path, RemotePath):
        return Lock(None)
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
            stale = _stale(path)
            if stale is None:
                return None
            if not _break(path, stale):
                return Lock(None)
            continue
        try:
            with os.fdopen(descriptor, "w") as file:
                json.dump(owner, file)
            return Lock(path)
        except BaseException:  # a signal's, too: nobody would give the lock back
            path.unlink(missing_ok=True)
            raise
    return None


def is_stale(path: Path) -> bool:
    """Whether the holder is known dead, or has not been heard of for 5 minutes. A lock that is gone is not stale."""
    return _stale(path) is not None


def remove_if_stale(path: Path) -> None:
    """Take the lock away if nobody alive holds it."""
    stale = _stale(path)
    if stale is not None:
        _break(path, stale)


def _stale(path: Path) -> os.stat_result | None:
    """The stale lock at `path`, None where there is none."""
    try:
        found = path.lstat()
        if _holder_is_dead(path):
            return found
    except FileNotFoundError:
        return None
    # Anybody can date a file in the future, but for its ctime, which says when that was done.
    touched = min(found.st_mtime, found.st_ctime)
    if 0 <= time.time() - touched <= STALE_S:
        return None
    # In the future by the file system's own clock: it was set back, and no holder has touched the lock since.
    return found if abs(_clock(path.parent) - touched) > STALE_S else None


def _clock(folder: Path) -> float:
    """The time by the clock of the folder's file system, in seconds; this host's where nothing can be written."""
    try:
        with files.draft(folder / "clock") as file:
            return os.fstat(file.fileno()).st_ctime
    except OSError:
        return time.time()


def _holder_is_dead(path: Path) -> bool:
    """Whether the lock names a process of this host that is gone. False where it says nothing that makes sense: its
    holder is writing it now, or it is damaged; then its age decides."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)  # of a pipe it waits for nobody
        with os.fdopen(descriptor, "rb") as file:
            owner = json.loads(file.read(_MOST_BYTES))
        same_host = owner["host"] == socket.gethostname()
        return same_host and not process_alive(int(owner["pid"]), str(owner["start_time"]))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return False


def _break(path: Path, stale: os.stat_result) -> bool:
    """Take a stale lock away; False, with a warning, where only another user may.

    Between the look and the rename another may have broken it and made its own: that one is put back.
    """
    aside = path.with_name(f"{path.name}.{secrets.token_hex(8)}.stale")
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return True
    except PermissionError as error:
        if not files.is_anothers(path, error):
            raise
        log.warning("%s", files.left_by_another(path))
        return False
    taken = aside.lstat()
    if (taken.st_ino, taken.st_mtime_ns) != (stale.st_ino, stale.st_mtime_ns):
        with contextlib.suppress(FileExistsError):
            os.link(aside, path)
    aside.unlink()
    return True

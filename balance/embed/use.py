"""Who uses a store: a mark in its folder for as long as a job may read it, so that nobody empties it meanwhile.

In: the store's folder. Out: a `Use`, to be closed. A mark is a lock (`runtime.locks`) of its own name: it is stale at
once when its job dies on this host. Whoever empties the store (`refresh=true`) takes away his own mark and waits until
there is no other. The price: a job on another host that was killed holds the store for 5 minutes; a user who may only
read the cache leaves no mark; and behind a URL, where nothing is locked, nobody does.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import time
from pathlib import Path

from balance.runtime import locks
from balance.runtime.remote import AnyPath, RemotePath

log = logging.getLogger(__name__)

_LOOK_AGAIN_S = 0.5
_MADE = (".arrow", ".json")  # suffixes of what is made in a store


def use_of(directory: AnyPath) -> Use | UnmarkedUse:
    """What says that this job uses the store."""
    return Use(directory) if isinstance(directory, Path) else UnmarkedUse(directory)


class UnmarkedUse:
    """`Use` of a store behind a URL: whoever empties it must be alone. A job that reads it then ends with an error."""

    def __init__(self, directory: RemotePath) -> None:
        self._directory = directory

    def enter(self) -> None:
        """Nothing."""

    def empty(self) -> None:
        """Remove all that was made in the folder. Raises Unreachable."""
        self._directory.remove([file.name for file in self._directory.glob("*") if file.suffix in _MADE])

    def __enter__(self) -> UnmarkedUse:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing."""


class Use:
    """This job's mark; `close()` or leaving the `with` block takes it away.

    To leave it waits while another job empties the store.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._process = f"use-{socket.gethostname()}-{os.getpid()}-"
        self._emptying = directory / "lock-emptying"
        self._mark: locks.Lock | None = None
        with contextlib.suppress(OSError):  # no such folder yet, or read-only
            for mark in directory.glob("use-*"):
                locks.remove_if_stale(mark)
        with contextlib.suppress(OSError):
            self.enter()

    def enter(self) -> None:
        """Leave the mark, unless it is there. OSError where the folder cannot be written."""
        if self._mark is not None:
            return
        self._mark = self._leave_mark()
        while self._emptying.exists() and not locks.is_stale(self._emptying):  # by one who did not see the mark
            time.sleep(_LOOK_AGAIN_S)

    def _leave_mark(self) -> locks.Lock | None:
        return locks.acquire(self._directory / f"{self._process}{secrets.token_hex(4)}")

    def empty(self) -> None:
        """Make the folder and remove all that was made in it, once no other process uses it. OSError."""
        self._directory.mkdir(parents=True, exist_ok=True)
        self.close()
        is_told = False
        while not self._empty_now():
            if not is_told:
                is_told = True
                log.info("refresh: waiting for other jobs that use the store: %s", ", ".join(self._others()))
            time.sleep(_LOOK_AGAIN_S)

    def _empty_now(self) -> bool:
        lock = locks.acquire(self._emptying)
        if lock is None:
            return False
        with lock:
            if self._others():
                return False
            for file in sorted(self._directory.iterdir()):
                if file.suffix in _MADE:
                    file.unlink(missing_ok=True)
            self._mark = self._leave_mark()
            return True

    def _others(self) -> list[str]:
        """The marks of other processes that live."""
        marks = [mark for mark in self._directory.glob("use-*") if not mark.name.startswith(self._process)]
        return sorted(mark.name.rpartition("-")[0] for mark in marks if not locks.is_stale(mark))

    def close(self) -> None:
        if self._mark is not None:
            self._mark.release()
            self._mark = None

    def __enter__(self) -> Use:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

"""How far the embedding is, for a person at a terminal (a bar) or a log file (a line now and then)."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from balance.embed.parts import Plan
from balance.records import DecodeFailure
from balance.runtime.terminal import Stage


@dataclass(frozen=True, slots=True)
class Progress:
    """What happened since the last report: clips decoded, and for a finished part its number and failures."""

    num_clips: int = 0
    part: int | None = None
    failures: tuple[DecodeFailure, ...] = ()
    by_others: bool = False


Report: TypeAlias = Callable[[Progress], None]


class ClipCounts:
    """A report that passes the counts of clips on once a second: for a driver that many workers report to."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._num_clips = 0
        self._told = time.monotonic()
        self._lock = threading.Lock()  # the thread that writes parts reports too

    def __call__(self, progress: Progress) -> None:
        if progress.by_others:
            self._report(progress)
            return
        with self._lock:
            self._num_clips += progress.num_clips
            if progress.part is not None or time.monotonic() - self._told >= 1:
                self._report(dataclasses.replace(progress, num_clips=self._num_clips))
                self._num_clips, self._told = 0, time.monotonic()


class EmbedProgress:
    """The `report` of `embed`: shows clips/s, time left and failures; hands each part's failures to `on_failures`.

    on_failures(split, all failures of that split so far) may raise to stop the run; workers() says who is at work.
    """

    def __init__(
        self,
        plan: Plan,
        on_failures: Callable[[str, list[DecodeFailure]], None],
        workers: Callable[[], str] | None = None,
    ) -> None:
        self._plan = plan
        self._workers = workers
        self._on_failures = on_failures
        self._failures: dict[str, list[DecodeFailure]] = {}
        self._finished = 0  # clips
        self._told = False
        self._stage = Stage("embedding", len(plan))
        self._stage.failed(0)

    def __call__(self, progress: Progress) -> None:
        if self._workers is not None:
            self._stage.rename(f"embedding on {self._workers()}")
        self._stage.advance(progress.num_clips, by_others=progress.by_others)
        if progress.part is not None:
            if progress.failures:
                split = self._plan.splits[progress.part]
                failures = self._failures.setdefault(split, [])
                failures.extend(progress.failures)
                self._stage.failed(sum(map(len, self._failures.values())))
                self._on_failures(split, failures)
            self._finished += int(self._plan.bounds[progress.part + 1] - self._plan.bounds[progress.part])
            if not self._told and self._stage.rate and self._finished < len(self._plan):
                self._told = True
                self._stage.line("first part done", self._finished)

    def close(self) -> float:
        """End the bar; the clips/s of this job."""
        self._stage.close()
        return self._stage.rate

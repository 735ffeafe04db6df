"""How far the embedding is, for a person at a terminal (a bar) or a log file (a line now and then)."""

from __future__ import annotations

import dataclasses
import logging
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from tqdm import tqdm

from balance.embed.parts import Plan
from balance.records import DecodeFailure

log = logging.getLogger(__name__)

_LINE_EVERY_S = 30.0


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


def duration(seconds: float) -> str:
    """`3 h 20 min`, `4 min 10 s`, `12 s`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"


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
        self._started = self._last_line = time.monotonic()
        self._done = self._own = self._finished = 0  # clips
        self._told = False
        self._bar = tqdm(
            total=len(plan), desc="embedding", unit=" clips", smoothing=0.05, disable=not sys.stderr.isatty()
        )

    def __call__(self, progress: Progress) -> None:
        self._done += progress.num_clips
        if not progress.by_others:
            self._own += progress.num_clips
        if self._workers is not None:
            self._bar.set_description_str(f"embedding on {self._workers()}", refresh=False)
        self._bar.update(progress.num_clips)
        now = time.monotonic()
        if progress.part is not None:
            if progress.failures:
                split = self._plan.splits[progress.part]
                failures = self._failures.setdefault(split, [])
                failures.extend(progress.failures)
                self._bar.set_postfix(failures=sum(map(len, self._failures.values())))
                self._on_failures(split, failures)
            self._finished += int(self._plan.bounds[progress.part + 1] - self._plan.bounds[progress.part])
            if not self._told and self._own and self._finished < len(self._plan):
                self._told = True
                self._line(now, "first part done", self._finished)
        elif self._bar.disable and now - self._last_line > _LINE_EVERY_S:
            self._line(now, "embedding", self._done)

    def _line(self, now: float, what: str, num_clips: int) -> None:
        self._last_line = now
        rate = self._own / max(now - self._started, 1e-9)
        left = (len(self._plan) - self._done) / max(rate, 1e-9)
        failed = sum(map(len, self._failures.values()))
        text = f"{what}: {num_clips:,} of {len(self._plan):,} clips, {rate:.1f} clips/s, {failed} failed, "
        with tqdm.external_write_mode(file=sys.stderr):
            log.info("%sabout %s left", text, duration(left))

    def close(self) -> float:
        """End the bar; the clips/s of this job."""
        self._bar.close()
        return self._own / max(time.monotonic() - self._started, 1e-9)

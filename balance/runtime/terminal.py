"""What a person sees of a command at work: its lines, and how far the stage is that lasts.

On a terminal a stage is a bar below the lines (stage, rate, time left, failures), and a warning has a colour; a file or
a pipe gets plain text, of a stage a line every half minute: no colour and no carriage return. `NO_COLOR=1` leaves
colours out on a terminal too. How much is said is the key `verbosity`; the log file of a run always holds everything.
"""

from __future__ import annotations

import enum
import logging
import os
import sys
import time
from types import TracebackType
from typing import Any, TextIO

from tqdm import tqdm

log = logging.getLogger(__name__)

SAID = "what the console says: quiet, normal, verbose"  # of the key `verbosity`
_LINE_EVERY_S = 30.0
_RED, _YELLOW, _PLAIN = "\033[31m", "\033[33m", "\033[0m"


class Verbosity(enum.Enum):
    """What the console says. quiet: warnings and errors; verbose: also what each stage took."""

    quiet = "quiet"
    normal = "normal"
    verbose = "verbose"


class Console(logging.StreamHandler[TextIO]):
    """The handler of lines for a person, on stderr."""

    def __init__(self, verbosity: Verbosity | str) -> None:
        super().__init__(sys.stderr)
        self._verbosity = Verbosity(verbosity)

    @property
    def least(self) -> int:
        """The level from which a line is shown; with hydra.verbose=true the root logger passes more."""
        levels = {Verbosity.quiet: logging.WARNING, Verbosity.verbose: logging.DEBUG}
        return levels.get(self._verbosity, min(logging.INFO, logging.getLogger().level))

    def filter(self, record: logging.LogRecord) -> Any:
        return record.levelno >= self.least and super().filter(record)

    def emit(self, record: logging.LogRecord) -> None:
        with tqdm.external_write_mode(file=self.stream):  # above a bar, not into it
            super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return coloured(text, _YELLOW, self.stream) if record.levelno >= logging.WARNING else text


def coloured(text: str, colour: str = _RED, stream: TextIO | None = None) -> str:
    """In a colour where the stream (stderr) is a terminal that has any, and nobody asked for none."""
    is_plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return text if is_plain or not (stream or sys.stderr).isatty() else f"{colour}{text}{_PLAIN}"


def duration(seconds: float) -> str:
    """`3 h 20 min`, `4 min 10 s`, `12 s`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"


class Stage:
    """How far a stage is, while this is open. total: None while it is not known."""

    def __init__(self, name: str, total: int | None, unit: str = "clips") -> None:
        self._name, self._unit = name, unit
        self._num_failed: int | None = None
        self._note = ""
        self.done = self._own = 0
        self._started = self._last_line = time.monotonic()
        self._bar: Any = tqdm(
            desc=name,
            total=total,
            unit=f" {unit}",
            smoothing=0.05,
            leave=False,
            dynamic_ncols=True,
            disable=not _shows(),
        )

    def advance(self, num: int = 1, *, by_others: bool = False) -> None:
        """So many more are done. by_others: not by this job, whose rate it does not raise."""
        self.done += num
        self._own += 0 if by_others else num
        self._bar.update(num)
        if self._bar.disable and time.monotonic() - self._last_line > _LINE_EVERY_S:
            self.line(self._name)

    def at(self, done: int) -> None:
        """So many are done, in all."""
        self.advance(done - self.done)

    def starts(self, total: int) -> None:
        """So many are to be done, which was not known before."""
        self._bar.total = total

    def failed(self, num: int) -> None:
        """So many failed, in all."""
        self._num_failed = num
        self._bar.set_postfix(failures=num, refresh=False)

    def note(self, text: str) -> None:
        """What is being done, beside the bar."""
        self._note = text
        self._bar.set_postfix_str(text)

    def rename(self, name: str) -> None:
        self._name = name
        self._bar.set_description_str(name, refresh=False)

    def line(self, what: str, num: int | None = None) -> None:
        """A line of the log, for files and pipes. num: what is done, where it is not all that was told."""
        self._last_line = time.monotonic()
        done = self.done if num is None else num
        words = [f"{done:,} of {self._bar.total:,} {self._unit}" if self._bar.total else f"{done:,} {self._unit}"]
        if self._own:
            words.append(f"{self.rate:{'.1f' if self.rate >= 1 else '.2g'}} {self._unit}/s")
        if self._num_failed is not None:
            words.append(f"{self._num_failed} failed")
        if self._own and self._bar.total:
            words.append(f"about {duration((self._bar.total - self.done) / self.rate)} left")
        log.info("%s: %s", what, ", ".join([*words, *filter(None, [self._note])]))

    @property
    def rate(self) -> float:
        """Done by this job per second."""
        return self._own / max(time.monotonic() - self._started, 1e-9)

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._bar.close()
        log.debug(
            "%s: %s %s in %s", self._name, f"{self.done:,}", self._unit, duration(time.monotonic() - self._started)
        )


def _shows() -> bool:
    """Whether there is a terminal, and nobody asked for quiet."""
    consoles = [handler for handler in logging.getLogger().handlers if isinstance(handler, Console)]
    return sys.stderr.isatty() and all(console.least <= logging.INFO for console in consoles)

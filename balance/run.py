"""`python -m balance.run`: for every seed its K most similar pool clips, and the augmented index made of both."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from balance import __version__
from balance.runtime import command

if TYPE_CHECKING:
    from balance.config import Job, Settings
    from balance.pipeline import Kept
    from balance.report.sweep import SweepRow

log = logging.getLogger(__name__)


class _Jobs:
    """The jobs of a sweep, which share what they embed while this is open. Copied to another process, as launchers do,
    a job shares nothing, and ends with all closed."""

    def __init__(self) -> None:
        self._closing = contextlib.ExitStack()
        self._kept: Kept | None = None
        self._is_open = False
        self._sweep: tuple[Path, list[SweepRow]] | None = None  # what is said of it at its end

    def __reduce__(self) -> tuple[type[_Jobs], tuple[()]]:
        return _Jobs, ()

    def __enter__(self) -> _Jobs:
        self._is_open = True
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._closing.close()
        if kind is None and self._sweep is not None:
            from balance.results import console

            console.tell_sweep(*self._sweep)

    def __call__(self, settings: Settings, where: Job) -> None:
        in_sweep, is_first = where.sweep is not None, self._sweep is None
        level = logging.INFO if is_first else logging.DEBUG
        where_from = settings.root.absolute()  # said before the imports
        log.log(level, "balance %s: k = %d, data in %s", __version__, settings.k, where_from)
        from balance import config, pipeline
        from balance.report import sweep
        from balance.results import console
        from balance.runtime.terminal import Verbosity

        if self._is_open:
            self._kept = self._kept or self._closing.enter_context(pipeline.Kept())
        pipeline.run(settings, where.folder, self._kept, in_sweep=in_sweep)
        config.link_latest(where)
        if where.sweep is not None:
            rows = sweep.write_sweep(where.sweep)
            own = next(row for row in rows if (where.sweep / row.run).samefile(where.folder))
            console.tell_of_sweep(own, with_header=is_first)
            if settings.verbosity is not Verbosity.quiet:
                self._sweep = where.sweep, rows


def main() -> None:
    """One run, or a sweep of them in one process, which embeds once."""
    from balance import config

    with _Jobs() as jobs:
        config.run_command("run", jobs)


if __name__ == "__main__":
    command.start(main)

"""`python -m balance.run`: for every seed its K most similar pool clips, and the augmented index made of both."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

from balance import __version__
from balance.runtime import command

if TYPE_CHECKING:
    from balance.config import Job, Settings
    from balance.pipeline import Kept

log = logging.getLogger(__name__)


class _Jobs:
    """The jobs of a sweep, which share what they embed while this is open. Copied to another process, as launchers do,
    a job shares nothing, and ends with all closed."""

    def __init__(self) -> None:
        self._closing = contextlib.ExitStack()
        self._kept: Kept | None = None
        self._is_open = False

    def __reduce__(self) -> tuple[type[_Jobs], tuple[()]]:
        return _Jobs, ()

    def __enter__(self) -> _Jobs:
        self._is_open = True
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def __call__(self, settings: Settings, where: Job) -> None:
        log.info("balance %s: k = %d, data in %s", __version__, settings.k, settings.root)  # before a second of imports
        from balance import config, pipeline
        from balance.report import sweep
        from balance.results import console

        if self._is_open:
            self._kept = self._kept or self._closing.enter_context(pipeline.Kept())
        pipeline.run(settings, where.folder, self._kept)
        config.link_latest(where)
        if where.sweep is not None:
            console.tell_sweep(where.sweep, sweep.write_sweep(where.sweep))


def main() -> None:
    """One run, or a sweep of them in one process, which embeds once."""
    from balance import config

    with _Jobs() as jobs:
        config.run_command("run", jobs)


if __name__ == "__main__":
    command.start(main)

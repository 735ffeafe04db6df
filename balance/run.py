"""`python -m balance.run`: for every seed its K most similar pool clips, and the augmented index made of both."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

from balance import __version__
from balance.runtime import command

if TYPE_CHECKING:
    from balance.pipeline import Kept

log = logging.getLogger(__name__)


def main() -> None:
    """One run, or a sweep of them in one process, which embeds once."""
    from balance import config

    kept: Kept | None = None
    closing = contextlib.ExitStack()

    def job(settings: config.Settings, where: config.Job) -> None:
        nonlocal kept
        log.info("balance %s: k = %d, data in %s", __version__, settings.k, settings.root)  # before a second of imports
        from balance import pipeline
        from balance.report import sweep
        from balance.results import console

        kept = kept or closing.enter_context(pipeline.Kept())
        pipeline.run(settings, where.folder, kept)
        config.link_latest(where)
        if where.sweep is not None:
            console.tell_sweep(where.sweep, sweep.write_sweep(where.sweep))

    with closing:
        config.run_command("run", job)


if __name__ == "__main__":
    command.start(main)

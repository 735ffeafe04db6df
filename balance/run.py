"""`python -m balance.run`: for every seed its K most similar pool clips, and the augmented index made of both."""

from __future__ import annotations

from typing import TYPE_CHECKING

from balance.runtime import command

if TYPE_CHECKING:
    from balance.pipeline import Kept


def main() -> None:
    """One run, or a sweep of them in one process, which embeds once."""
    from balance import config

    kept: Kept | None = None

    def job(settings: config.Settings, where: config.Job) -> None:
        nonlocal kept
        from balance import pipeline
        from balance.report import sweep

        kept = kept or pipeline.Kept()
        pipeline.run(settings, where.folder, kept)
        if where.sweep is not None:
            sweep.write_sweep(where.sweep)

    config.run_command("run", job)


if __name__ == "__main__":
    command.start(main)

"""`python -m balance.index`: official segment lists and a media folder -> VIP-ANT index files."""

from __future__ import annotations

from balance.runtime import command


def main() -> None:
    """One indexing; prints its inventory."""
    from balance import config

    def job(settings: config.IndexSettings, _: config.Job) -> None:
        import logging
        from pathlib import Path

        from balance.data import build_index
        from balance.data.ontology import read_ontology

        names: dict[str, str] = {}
        if settings.index.media is not None:
            names, _file = read_ontology(None, Path(settings.index.media).expanduser())
        for line in build_index.build(settings.index, ontology=names):
            logging.getLogger(__name__).info("%s", line)

    config.run_command("index", job)


if __name__ == "__main__":
    command.start(main)

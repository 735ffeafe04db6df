"""`python -m balance.atlas RUN_DIR`: the embedding space of a finished run as a map to look at and listen to.

Writes atlas.parquet, atlas.json and index.html, which opens from the disk, into RUN_DIR/atlas/.
"""

from __future__ import annotations

import logging
import sys

from balance.runtime import command


def main() -> None:
    """One map; prints where it is."""
    from balance import config, help
    from balance.errors import UserError
    from balance.runtime.terminal import Console

    given = sys.argv[1:]
    if config.printed_help("atlas", given):
        return
    if not given:
        print(help.text("atlas", config.SCHEMAS["atlas"], config.CONF, every_key=False), file=sys.stderr)
        raise SystemExit(1)
    if given[0].split("=")[0] in config.keys("atlas"):
        raise UserError(f"the folder of a run comes first, and {given[0]} was given; type: {help.USAGE['atlas'][0]}")
    settings, _ = config.compose("atlas", given[1:])
    logging.basicConfig(format="%(message)s", handlers=[Console(settings.verbosity)])
    logging.getLogger("balance").setLevel(logging.DEBUG)  # libraries say where they found credentials

    from balance.atlas import job

    job.run(settings, given[0])


if __name__ == "__main__":
    command.start(main, writes=False)

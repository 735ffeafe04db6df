"""`python -m balance.index`: official segment lists and a media folder -> VIP-ANT index files.

Composes the configuration, hands it to `balance.data.build_index`, prints its inventory.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

import hydra
from omegaconf import DictConfig

from balance.config import CONF, register, register_resolvers, settings_from
from balance.data import build_index, splits
from balance.runtime import command

log = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True)
class IndexSettings:
    """The whole configuration of the command."""

    index: build_index.IndexConfig = field(default_factory=build_index.IndexConfig)


register("index", IndexSettings)
register_resolvers()


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="index")
def main(config: DictConfig) -> None:
    """One indexing."""
    with command.errors_for_people():
        settings: IndexSettings = settings_from(config)
        names: dict[str, str] = {}
        if settings.index.media is not None:
            names, _ = splits.read_ontology(None, Path(settings.index.media).expanduser())
        for line in build_index.build(settings.index, ontology=names):
            log.info("%s", line)


if __name__ == "__main__":
    command.start(main)

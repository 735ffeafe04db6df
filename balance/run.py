"""`python -m balance.run`: for every seed its K most similar pool clips, and the augmented index made of both.

Composes the configuration, hands it to the pipeline, writes the run's files, prints what it found.
"""

from __future__ import annotations

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from balance import finish
from balance.config import CONF, Settings, register, register_resolvers, settings_from
from balance.report import page
from balance.runtime import command

register("run", Settings)
register_resolvers()


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def main(config: DictConfig) -> None:
    """One job: a run, or one of a sweep."""
    with command.errors_for_people():
        settings: Settings = settings_from(config)
        job = HydraConfig.get()
        finish.run(settings, Path(job.runtime.output_dir))
        if job.mode == RunMode.MULTIRUN:
            page.write_sweep(Path(job.sweep.dir))


if __name__ == "__main__":
    command.start(main)

"""`python -m balance.finetune`: the probe's training sets, trained: does the cheap answer predict the expensive one?

Composes the configuration, prepares what is missing (embeddings, neighbours, the probe's fits), trains, writes
finetune.csv, finetune.json and finetune.html. A stopped job goes on at its last checkpoint.
"""

from __future__ import annotations

from balance.runtime import command


def main() -> None:
    """One table of trainings."""
    from balance import config

    def job(settings: config.FinetuneSettings, where: config.Job) -> None:
        from balance.finetune import job as finetune_job

        finetune_job.run(settings, where.folder)

    config.run_command("finetune", job)


if __name__ == "__main__":
    command.start(main)

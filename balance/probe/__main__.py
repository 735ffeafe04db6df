"""`python -m balance.probe`: does the augmented set help, by linear probes on stored embeddings?

Composes the configuration, prepares what is missing (embeddings, neighbours), runs the table, writes probe.csv,
probe.json and probe.html, prints the sentences. A stopped probe goes on at its next fit.
"""

from __future__ import annotations

from balance.runtime import command


def main() -> None:
    """One probe."""
    from balance import config

    def job(settings: config.ProbeSettings, where: config.Job) -> None:
        from balance.probe import job as probe_job

        probe_job.run(settings, where.folder)

    config.run_command("probe", job)


if __name__ == "__main__":
    command.start(main)

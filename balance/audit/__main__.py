"""`python -m balance.audit`: is any clip of a training list a copy of an evaluation clip? By id, by samples, by sound.

Ends with status 0 where no copy was found (the verdict `incomplete`: some clips could not be compared, no more than
`max_failures` and `max_missing` allow), 3 where copies were found, 1 after a mistake.
"""

from __future__ import annotations

from balance.runtime import command


def main() -> None:
    """One audit."""
    from balance import config

    status = 0

    def job(settings: config.AuditSettings, where: config.Job) -> None:
        nonlocal status
        from balance.audit import job as audit_job

        found = audit_job.run(settings, where.folder)
        status = status if status == audit_job.STATUS["copies"] else max(status, audit_job.STATUS[found])

    config.run_command("audit", job)
    if status:
        raise SystemExit(status)


if __name__ == "__main__":
    command.start(main)

"""A command whose work sleeps in three processes, to be killed by tests: `python -m tests.engine.job`."""

from balance.engine.local import run_shares
from balance.runtime import command
from tests.engine import work


def main() -> None:
    run_shares(work.sleep, [600.0, 600.0, 600.0], lambda pid: print(pid, flush=True))


if __name__ == "__main__":
    command.start(main, writes=False)

"""A command whose work on a Ray cluster sleeps, for tests: `python -m tests.engine.ray_job ADDRESS FOLDER`."""

import sys
from pathlib import Path

from balance.engine import ray as engine
from balance.engine.config import ExecutorConfig
from balance.runtime import command
from tests.engine.cluster_work import Setup, note


def main() -> None:
    address, folder = sys.argv[1:]
    engine._HEAD_LIMIT_S = 5.0  # so that the test need not wait for long
    with engine.Cluster(ExecutorConfig(address=address), "auto") as cluster:
        cluster.run(note, Setup(Path(folder), sleep_s=600), [b"x"] * 5, print)


if __name__ == "__main__":
    command.start(main, writes=False)

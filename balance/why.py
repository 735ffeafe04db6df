"""`python -m balance.why RUN_DIR ID`: why a clip is in a run's augmented set, or why not."""

from __future__ import annotations

from balance.runtime import command


def main() -> None:
    """Prints the answer."""
    from balance.results.explain import why

    for line in why(*command.arguments("python -m balance.why RUN_DIR ID", 2)):
        print(line)


if __name__ == "__main__":
    command.start(main, writes=False)

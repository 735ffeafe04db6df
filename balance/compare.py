"""`python -m balance.compare RUN_A RUN_B`: what two runs' augmented sets share, and which labels gain or lose."""

from __future__ import annotations

from balance.runtime import command


def main() -> None:
    """Prints the answer."""
    from balance.results.comparison import compare

    for line in compare(*command.arguments("python -m balance.compare RUN_A RUN_B", 2)):
        print(line)


if __name__ == "__main__":
    command.start(main, writes=False)

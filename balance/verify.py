"""`python -m balance.verify RUN_DIR`: are a run's files what it wrote, and do they follow from the embeddings?"""

from __future__ import annotations

from balance.runtime import command


def main() -> None:
    """Prints the answer."""
    from balance.results.verification import verify

    for line in verify(*command.arguments("python -m balance.verify RUN_DIR", 1)):
        print(line)


if __name__ == "__main__":
    command.start(main, writes=False)

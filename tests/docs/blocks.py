"""The code blocks of README.md and docs/*.md: language, text, and the reason why a block cannot be run, if it has one.

A block is run unless the line before it says why not: `<!-- not run: it needs Slurm -->`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tests.paths import REPOSITORY

PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
_MARK = re.compile(r"<!-- not run: (.+) -->")


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    text: str
    not_run: str | None

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found: list[Block] = []
    lines = page.read_text("utf-8").splitlines()
    at = 0
    while at < len(lines):
        if fence := re.fullmatch(r"\s*```(\w*)", lines[at]):
            end = next(i for i in range(at + 1, len(lines)) if lines[i].strip() == "```")
            mark = _MARK.fullmatch(lines[at - 1].strip()) if at else None
            text = "\n".join(lines[at + 1 : end]) + "\n"
            found.append(Block(page, at + 1, fence[1], text, mark[1] if mark else None))
            at = end
        at += 1
    return found


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def to_run(page: Path) -> list[Block]:
    """The blocks of a page that are commands, programs or configuration, without a reason against running them."""
    mine = (block for block in BLOCKS if block.page == page and block.not_run is None)
    return [block for block in mine if block.language not in ("mermaid", "text")]

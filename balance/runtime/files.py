"""Files that appear complete or not at all, and what is known of them (hashes).

A file is written under a temporary name in its own folder and renamed: a reader, a crash or a full disk never meets
half a file under its final name.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; renamed to it when the block ends well, removed when it does not."""
    temporary = path.with_name(f"tmp-{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def atomic_text(path: Path) -> Iterator[IO[str]]:
    """A text file (UTF-8, LF) that gets its name `path` when the block ends well."""
    with atomic(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n", buffering=1 << 20) as file:
        yield file


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON; NaN and infinities are refused, since JSON has none."""
    with atomic_text(path) as file:
        json.dump(value, file, indent=2, ensure_ascii=False, allow_nan=False)
        file.write("\n")


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes, read in blocks of 1 MiB (a memory map would count as resident memory)."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def input_hashes(paths: list[Path | None]) -> dict[str, str]:
    """Path -> sha256 of the input files that are files."""
    return {str(path): sha256_file(path) for path in paths if path is not None and path.is_file()}

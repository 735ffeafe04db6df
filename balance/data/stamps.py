"""The stamp of every listed file: its size and modification time, none where it is missing on disk.

In: keys of clips and the media root. Out: two columns of numbers. Asked before any work, for all clips: a file that was
replaced after it was embedded has another stamp. Each folder is listed once, so that a missing file costs nothing, and
each listed file asked for its size and time, in threads. The price: 5 µs per file on a local disk (0.5 s for 100,000
files), on a network disk an answer of its server per file, 16 at a time.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from balance.data import media
from balance.records import NO_STAMP, Int64, Stamp
from balance.runtime.remote import AnyPath, RemotePath

_THREADS = 16
_FILES_AT_ONCE = 1000


def file_stamps(media_root: AnyPath, format: str, paths: Any) -> Int64:
    """(size in bytes, modification time in ns) of the file of each key (Arrow strings, (n,)); −1, −1 where it is
    missing; (n, 2) int64.

    format: the value of `dataset.format`. A link to nowhere counts as missing; a member of a container has its
    container's stamp. Behind a URL another number, made of the file's ETag or the like, stands for the time.
    """
    names = [media.container(format, path) for path in paths.to_pylist()]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    found = media_root.stamps(numbers) if isinstance(media_root, RemotePath) else _on_disk(media_root, numbers)
    stamps = np.full((len(numbers), 2), -1, dtype=np.int64)
    stamps[[numbers[name] for name in found]] = np.array(list(found.values()), dtype=np.int64).reshape(-1, 2)
    return stamps[[numbers[name] for name in names]]


def _on_disk(media_root: Path, names: Iterable[str]) -> dict[str, Stamp]:
    """The stamps of the files that are there."""
    folders: dict[str, list[str]] = {}
    for name in names:
        folders.setdefault(name.rpartition("/")[0], []).append(name)

    def listed(folder: str) -> list[str]:
        present = _names_in(media_root / folder)
        return [name for name in folders[folder] if name.rpartition("/")[2] in present]

    def look(some: list[str]) -> list[Stamp]:
        return [_stamp(f"{media_root}/{name}") for name in some]

    with ThreadPoolExecutor(_THREADS) as threads:
        present = [name for found in threads.map(listed, folders) for name in found]
        chunks = [present[at : at + _FILES_AT_ONCE] for at in range(0, len(present), _FILES_AT_ONCE)]
        stamps = [stamp for some in threads.map(look, chunks) for stamp in some]
    return dict(zip(present, stamps, strict=True))


def _names_in(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return set()


def _stamp(file: str) -> Stamp:
    try:
        stat = os.stat(file)
    except OSError:  # a link to nowhere, or gone since it was listed
        return NO_STAMP
    return stat.st_size, stat.st_mtime_ns

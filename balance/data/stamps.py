"""The stamp of every listed file: its size and modification time, none where it is missing on disk.

In: keys of clips and the media root. Out: two columns of numbers. Asked before any work, for all clips: a file that was
replaced after it was embedded has another stamp. Each folder is listed once, so that a missing file costs nothing, and
each listed file asked for its size and time, in threads. The price: 5 µs per file on a local disk (0.5 s for 100,000
files), on a network disk an answer of its server per file, 16 at a time.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from balance.data import media
from balance.records import NO_STAMP, Int64, Stamp, Strings
from balance.runtime.remote import AnyPath, RemotePath

_THREADS = 16
_FILES_AT_ONCE = 1000


def file_stamps(media_root: AnyPath, format: str, paths: Strings) -> Int64:
    """(size in bytes, modification time in ns) of the file of each key (Arrow strings, (n,)); −1, −1 where it is
    missing; (n, 2) int64.

    format: the value of `dataset.format`. A link to nowhere counts as missing; a member of a container has its
    container's stamp. Behind a URL another number, made of the file's ETag or the like, stands for the time.
    """
    is_more = format in ("parquet", "webdataset") or pc.any(pc.match_substring(paths, "#t=")).as_py()
    names = pa.array([media.container(format, path) for path in paths.to_pylist()]) if is_more else paths
    distinct = names.cast(pa.large_string()).dictionary_encode()
    at: Int64 = distinct.indices.to_numpy()
    if isinstance(media_root, RemotePath):
        return _behind_url(media_root, distinct.dictionary)[at]
    return _on_disk(media_root, distinct.dictionary)[at]


def _behind_url(media_root: RemotePath, names: Strings) -> Int64:
    """The stamps of these files, (m, 2)."""
    found = media_root.stamps(names.to_pylist())
    return np.array([found.get(name, NO_STAMP) for name in names.to_pylist()], dtype=np.int64).reshape(-1, 2)


def _on_disk(media_root: Path, names: Strings) -> Int64:
    """The stamps of these files, (m, 2)."""
    folders = pc.replace_substring_regex(names, r"(?s)[^/]*\z", "").dictionary_encode()
    codes = folders.indices.to_numpy()
    order = np.argsort(codes, kind="stable")
    rows_in = np.split(order, np.cumsum(np.bincount(codes, minlength=len(folders.dictionary)))[:-1])
    stamps = np.full((len(names), 2), -1, dtype=np.int64)

    def listed(folder: str, rows: Int64) -> Int64:
        present = _names_in(media_root / folder)
        if not present:
            return rows[:0]
        some = names.take(pa.array(rows)).to_pylist()
        return rows[[name[len(folder) :] in present for name in some]]

    def look(rows: Int64) -> None:
        stamps[rows] = [_stamp(f"{media_root}/{name}") for name in names.take(pa.array(rows)).to_pylist()]

    with ThreadPoolExecutor(_THREADS) as threads:
        there = list(threads.map(listed, folders.dictionary.to_pylist(), rows_in))
        present = np.concatenate([codes[:0].astype(np.int64), *there])
        chunks = [present[at : at + _FILES_AT_ONCE] for at in range(0, len(present), _FILES_AT_ONCE)]
        for _ in threads.map(look, chunks):
            pass
    return stamps


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

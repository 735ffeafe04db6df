"""Vectors of parts behind a URL, fetched whole, checked, and kept in one temporary file for as long as they are read.

In: a part's file and where its vectors lie in it. Out: all of its vectors. A search reads a slice of the pool several
times, and a part of it in pieces, so each part is fetched once; the file has no name, so that a killed worker leaves
none, and is begun anew at `MOST_BYTES`. The price: as much room in the system's temporary folder, and a part is read
whole for a single row.
"""

from __future__ import annotations

import os
import tempfile
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from balance.embed.store_files import fetch
from balance.errors import UserError
from balance.records import Float32
from balance.runtime.remote import RemotePath

MOST_BYTES = 16 << 30
AT_ONCE = 16  # parts that are fetched together


@dataclass(frozen=True, slots=True)
class Place:
    """Where the vectors (num_rows, dim) of a part begin in its file, in bytes."""

    file: RemotePath
    offset: int
    num_rows: int
    dim: int


class PartCopies:
    """Any number of parts, asked for by any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept = -1  # descriptor, from the first part on
        self._at: dict[RemotePath, int] = {}
        self._end = 0

    def vectors(self, places: Sequence[Place]) -> list[Float32]:
        """Of each part all vectors; at most `AT_ONCE` parts. UserError where one is gone or damaged."""
        with self._lock:
            if self._kept < 0:
                with tempfile.TemporaryFile() as nameless:
                    self._kept = os.dup(nameless.fileno())
                weakref.finalize(self, os.close, self._kept)
            found = {place.file: self._read(place) for place in places if place.file in self._at}
            missing = [place for place in places if place.file not in found]
            for place, vectors in zip(missing, _fetched(missing), strict=True):
                self._keep(place.file, vectors)
                found[place.file] = vectors
            return [found[place.file] for place in places]

    def _keep(self, file: RemotePath, vectors: Float32) -> None:
        data = vectors.reshape(-1).view(np.uint8).data
        if self._end + len(data) > MOST_BYTES:
            self._at.clear()
            os.ftruncate(self._kept, 0)
            self._end = 0
        self._at[file] = self._end
        while len(data):
            written = os.pwrite(self._kept, data, self._end)
            data, self._end = data[written:], self._end + written

    def _read(self, place: Place) -> Float32:
        out = np.empty((place.num_rows, place.dim), dtype=np.float32)
        data, at = out.reshape(-1).view(np.uint8).data, self._at[place.file]
        while len(data):
            got = os.preadv(self._kept, [data], at)
            data, at = data[got:], at + got
        return out


def _fetched(places: Sequence[Place]) -> list[Float32]:
    if not places:
        return []
    connection = places[0].file.connection()
    with ThreadPoolExecutor(AT_ONCE, "part reader") as threads:
        return list(threads.map(lambda place: _vectors(place, fetch(place.file, connection)), places))


def _vectors(place: Place, data: bytes | None) -> Float32:
    if data is None:
        raise UserError(f"{place.file} was damaged, or removed by another: run the same command again, it is made anew")
    rows = np.frombuffer(data, np.float32, place.num_rows * place.dim, place.offset)
    return rows.reshape(place.num_rows, place.dim)

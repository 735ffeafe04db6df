"""Float32 vectors in a file, one per row, read with pread and never mapped.

Pages of a memory map count as resident memory, and the pool may be larger than memory. Vectors that come in a form
which cannot be read at a row are copied once into an unnamed temporary file; the price is that much disk for the run.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from balance.errors import UserError
from balance.records import Float32, Int64, Strings

BLOCK_BYTES = 16 << 20

AnyFloat: TypeAlias = np.ndarray[Any, Any]  # of 16, 32 or 64 bits, of either byte order


class FlatVectors:
    """`records.Vectors`: raw little-endian float32 rows in one open file.

    Holds the descriptor, so the file may be unnamed; safe to read from several threads. `source` and `ids` only serve
    `name`.
    """

    def __init__(self, descriptor: int, offset_bytes: int, shape: tuple[int, int], source: str, ids: Strings) -> None:
        self._descriptor = descriptor
        self._offset_bytes = offset_bytes
        self._shape = shape
        self._source = source
        self._ids = ids
        weakref.finalize(self, os.close, descriptor)

    @property
    def shape(self) -> tuple[int, int]:
        """(n, dim)"""
        return self._shape

    def _read_into(self, out: Float32, row: int) -> None:
        """Fills `out` (rows, dim), contiguous, from this row on."""
        view = out.reshape(-1).view(np.uint8).data
        at = self._offset_bytes + row * self._shape[1] * 4
        while len(view):
            got = os.preadv(self._descriptor, [view], at)
            if got == 0:
                raise UserError(f"{self.name(row)}: the file ends early: it was changed while it was read")
            view, at = view[got:], at + got

    def read(self, start: int, stop: int) -> Float32:
        """Rows start … stop, a fresh (stop − start, dim) float32 array."""
        out = np.empty((stop - start, self._shape[1]), dtype=np.float32)
        self._read_into(out, start)
        return out

    def take(self, rows: Int64) -> Float32:
        """These rows in any order, a fresh (len(rows), dim) float32 array. Runs of rows are one read each."""
        order = np.argsort(rows, kind="stable")
        wanted = np.asarray(rows)[order]
        out = np.empty((len(rows), self._shape[1]), dtype=np.float32)
        cuts = np.flatnonzero(np.diff(wanted) != 1) + 1
        for run in np.split(np.arange(len(rows)), cuts) if len(rows) else []:
            first = int(wanted[run[0]])
            out[order[run]] = self.read(first, first + len(run))
        return out

    def name(self, row: int) -> str:
        """File, row and id, for messages."""
        return f"{self._source} row {row} (id {self._ids[row].as_py()})"

    def sha256(self) -> str:
        """Hex, of the vectors' float32 row-major bytes."""
        digest = hashlib.sha256()
        num_rows, dim = self._shape
        step = max(1, BLOCK_BYTES // (4 * dim))
        for start in range(0, num_rows, step):
            digest.update(self.read(start, min(start + step, num_rows)).data)
        return digest.hexdigest()


def spool(blocks: Iterable[AnyFloat], dim: int, source: str, ids: Strings, scratch: Path | None) -> FlatVectors:
    """Vectors copied as float32 into an unnamed file. blocks: (rows, dim) or (dim,) each, of any floats.

    scratch: the folder for the file (None: the system's). What float32 cannot hold becomes infinite; the search refuses
    such vectors.
    """
    with tempfile.TemporaryFile(dir=scratch) as copy:
        for block in blocks:
            with np.errstate(over="ignore"):
                copy.write(np.ascontiguousarray(block, dtype="<f4").data)
        copy.flush()
        return FlatVectors(os.dup(copy.fileno()), 0, (len(ids), dim), source, ids)

"""The embedding store: all parts of a folder, keyed by a clip's relative audio path, shared by every run and user.

In: a folder of part files (`part_file.py`). Out: which paths have an embedding, the vectors and facts of chosen rows,
the clips that failed. A `Store` is what the folder held when it was opened; `reopen` looks again and reads only what
is new. Vectors are read with `pread` at the place of the Arrow buffer: mapped pages would count as resident memory.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from balance.embed.part_file import Part, read_part, version_of
from balance.errors import UserError
from balance.records import Facts, Float32, Int64


class Store:
    """What a store's folder held when it was opened. `rows()` finds clips; `vectors()` and `facts()` read them."""

    def __init__(self, directory: Path, *, ignore: bool = False, checked: Iterable[Part] = ()) -> None:
        """Open and check every part. ignore: as if there were none; checked: parts that need not be read again, unless
        their files have changed. UserError for parts of different dimensions."""
        self.directory = directory
        files = [] if ignore else sorted(directory.glob("part-*-*.arrow"))
        known = {part.file: part for part in checked}

        def read(file: Path) -> Part | None:
            part = known.get(file)
            return part if part is not None and part.version == version_of(file) else read_part(file)

        with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
            self._checked = [part for part in pool.map(read, files) if part is not None]
        self._parts = [part for part in self._checked if len(part.paths)]
        dims = {part.dim: part.file.name for part in self._parts}
        if len(dims) > 1:
            raise UserError(
                f"{directory} holds parts of different dimensions {dict(sorted(dims.items()))}: "
                "another program wrote there; start it anew with refresh=true"
            )
        self.dim = next(iter(dims), 0)
        self._first = np.cumsum([0] + [len(part.paths) for part in self._parts])
        empty = pa.array([], pa.string())
        self.paths = pa.concat_arrays([empty] + [part.paths for part in self._parts])
        self.ids = pa.concat_arrays([empty] + [part.ids for part in self._parts])
        # Of a clip that is in several parts the first counts, as in `rows`.
        self.partial = {path: words for part in reversed(self._parts) for path, words in part.partial.items()}
        # An embedding made later supersedes a failure remembered earlier.
        remembered = {f.path: f for part in self._checked for f in part.failures}
        self._remembered_by: dict[str, list[str]] = {}
        for part in self._checked:
            for f in part.failures:
                self._remembered_by.setdefault(f.path, []).append(part.file.name)
        embedded = pc.is_in(pa.array(list(remembered), pa.string()), value_set=self.paths).to_pylist()
        self.failures = {
            path: failure for (path, failure), done in zip(remembered.items(), embedded, strict=True) if not done
        }

    def reopen(self) -> Store:
        """What the folder holds now. Parts that were checked are read again only if their files have changed."""
        return Store(self.directory, checked=self._checked)

    def __len__(self) -> int:
        return int(self._first[-1])

    def rows(self, paths: Any) -> Int64:
        """The store row of each path of an Arrow string array, −1 where it has no embedding; (n,) int64."""
        found = pc.index_in(paths, value_set=self.paths)
        return np.asarray(found.fill_null(-1).to_numpy(zero_copy_only=False), dtype=np.int64)

    def attempts(self, path: str) -> str:
        """Names the attempts that failed to decode this clip ("" if there was none): a retry is another attempt."""
        return " ".join(self._remembered_by.get(path, ()))

    def facts(self, rows: Int64) -> Facts:
        """The clip facts of these store rows."""

        def column(name: str) -> npt.NDArray[Any]:
            columns = [getattr(part.facts, name) for part in self._parts]
            return np.concatenate(columns)[rows] if columns else np.empty((0, 20) if name == "pcm_sha1" else 0)

        return Facts(column("sample_rate"), column("num_samples"), column("rms_db"), column("pcm_sha1"))

    def vectors(self, rows: Int64) -> StoreVectors:
        """The vectors of these store rows, as a `records.Vectors`."""
        return StoreVectors(self, rows)

    def identity(self, rows: Int64) -> str:
        """Hex digest that changes when the bytes of any part that holds these rows change (parts name their bytes)."""
        used: Int64 = np.unique(self.place(rows)[0])
        return hashlib.sha256("\n".join(self.part_file(int(i)).name for i in used).encode()).hexdigest()

    def place(self, rows: Int64) -> tuple[Int64, Int64]:
        """(part number, byte offset in its file) of each row."""
        part = np.searchsorted(self._first, rows, side="right") - 1
        offset = np.array([p.offset for p in self._parts], dtype=np.int64)
        return part, offset[part] + (rows - self._first[part]) * (4 * self.dim)

    def part_file(self, number: int) -> Path:
        return self._parts[number].file


class StoreVectors:
    """`records.Vectors` over chosen store rows, read with `pread` in runs of neighbouring rows."""

    def __init__(self, store: Store, rows: Int64) -> None:
        self._store = store
        self._rows = rows

    @property
    def shape(self) -> tuple[int, int]:
        return len(self._rows), self._store.dim

    def read(self, start: int, stop: int) -> Float32:
        return self._gather(self._rows[start:stop])

    def take(self, rows: Int64) -> Float32:
        return self._gather(self._rows[rows])

    def name(self, row: int) -> str:
        part, _ = self._store.place(self._rows[row : row + 1])
        return f"{self._store.part_file(int(part[0])).name}, id {self._store.ids[int(self._rows[row])].as_py()}"

    def _gather(self, rows: Int64) -> Float32:
        dim = self._store.dim
        out = np.empty((len(rows), dim), dtype=np.float32)
        if len(rows) == 0:
            return out
        part, offset = self._store.place(rows)
        jump = (part[1:] != part[:-1]) | (offset[1:] != offset[:-1] + 4 * dim)
        starts = np.concatenate([[0], np.flatnonzero(jump) + 1, [len(rows)]])
        data = out.reshape(-1).view(np.uint8).data
        opened, descriptor = -1, -1
        try:
            for a, b in itertools.pairwise(starts):
                if part[a] != opened:
                    if descriptor >= 0:
                        os.close(descriptor)
                    opened, descriptor = part[a], os.open(self._store.part_file(int(part[a])), os.O_RDONLY)
                view = data[a * 4 * dim : b * 4 * dim]
                done = 0
                while done < len(view):
                    got = os.preadv(descriptor, [view[done:]], int(offset[a]) + done)
                    if got == 0:
                        raise UserError(f"{self._store.part_file(int(part[a]))} became shorter while it was read")
                    done += got
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        return out

"""The embedding store: all parts of a folder, keyed by a clip's relative audio path, shared by every run and user.

In: a folder of `store_files`. Out: which paths have an embedding, the vectors and facts of chosen rows, the clips that
failed (a failure of fewer decoders than there are now does not count: they may read it). A path may have several
embeddings, of files that were there one after the other or under two media roots: the file's stamp says which one
counts. A `Store` is what the folder held when it was opened; `reopen` looks again and reads only what is new. Vectors
are read with `pread` at the place of the Arrow buffer: mapped pages would count as resident memory. Behind a URL parts
are fetched whole (`part_copies`).
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from balance.audio.decode import DECODERS
from balance.embed.part_copies import AT_ONCE, PartCopies, Place
from balance.embed.store_files import Part, id_in_part, read_confirmed, read_part, version_of
from balance.errors import UserError
from balance.records import QUALITY, Bool, DecodeFailure, Facts, Float32, Int64, Stamp, join_strings
from balance.runtime.remote import AnyPath, RemotePath

_KEYS = ["path", "size_bytes", "time_ns"]


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """What a store knows of n clips.

    rows: (n,) int64 store row, −1 where there is none; failed: (n,) bool, it could not be embedded and, where a file of
    other samples was embedded before, this very file could not; other_size, other_time: (n,) bool, the file has another
    size than when the row was embedded, or only another modification time.
    """

    rows: Int64
    failed: Bool
    other_size: Bool
    other_time: Bool


class Store:
    """What a store's folder held when it was opened. `rows()` finds clips; `vectors()` and `facts()` read them."""

    def __init__(self, directory: AnyPath, *, ignore: bool = False, checked: Iterable[Part] = ()) -> None:
        """Open and check every part. ignore: as if there were none; checked: parts that need not be read again, unless
        their files have changed. UserError for parts of different dimensions."""
        self.directory = directory
        found: Iterable[AnyPath] = [] if ignore else directory.glob("part-*-*.arrow")
        files = sorted(found)
        known = {part.file: part for part in checked}
        connection = directory.connection() if isinstance(directory, RemotePath) else None

        def read(file: AnyPath) -> Part | None:
            part = known.get(file)
            return part if part is not None and part.version == version_of(file) else read_part(file, connection)

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
        offsets = np.array([part.offset for part in self._parts], dtype=np.int64)
        self._places = _Places(tuple(part.file for part in self._parts), self._first, offsets, self.dim)
        self.paths = join_strings(part.paths for part in self._parts)
        self.ids = join_strings(part.ids for part in self._parts)
        self._stamps = np.concatenate([np.empty((0, 2), np.int64)] + [part.stamps for part in self._parts])
        self._partial: dict[int, str] = {}  # row -> words
        for part, first in zip(self._parts, self._first, strict=False):
            at = pc.index_in(pa.array(list(part.partial), pa.string()), value_set=part.paths).to_pylist()
            self._partial |= {int(first) + row: words for row, words in zip(at, part.partial.values(), strict=True)}
        self._remembered: dict[str, list[tuple[str, DecodeFailure]]] = {}  # path -> (part, failure)
        for part in self._checked:
            for failure in part.failures:
                self._remembered.setdefault(failure.path, []).append((part.file.name, failure))
        self._is_writable = isinstance(directory, RemotePath) or os.access(directory, os.W_OK)
        self._first_row = self._index_in(self.paths)
        self._newest = self._newest_rows()
        self._others = self._other_stamps(None if ignore else directory)

    def reopen(self) -> Store:
        """What the folder holds now. Parts that were checked are read again only if their files have changed."""
        return Store(self.directory, checked=self._checked)

    def __len__(self) -> int:
        return int(self._first[-1])

    def rows(self, paths: Any) -> Int64:
        """The store row of each path of an Arrow string array, −1 where it has no embedding; (n,) int64. Of several
        embeddings of one path it is that of the newest file."""
        rows = self._index_in(paths)
        return np.where(rows < 0, -1, self._newest[rows]) if len(self) else rows

    def find(self, paths: Any, stamps: Int64) -> Found:
        """What is known of these clips (Arrow strings, (n,)), whose files have these stamps now ((n, 2), −1 where a
        file is missing: then any embedding of its path counts)."""
        paths = paths.cast(pa.large_string())
        rows = self.rows(paths)
        if len(self):
            known = np.where((rows >= 0)[:, None], self._stamps[rows], -1)
        else:
            known = np.full((len(rows), 2), -1, dtype=np.int64)
        in_doubt = (rows >= 0) & (stamps[:, 0] >= 0) & (known[:, 0] >= 0) & (known != stamps).any(axis=1)
        at = np.flatnonzero(in_doubt)
        if len(at) and len(self._others):
            asked = pa.table([paths.take(pa.array(at)), *stamps[at].T, at], names=[*_KEYS, "at"])
            same = asked.join(self._others, _KEYS, join_type="inner")
            found = same["at"].to_numpy()
            order = np.argsort(-same["row"].to_numpy(), kind="stable")  # of equal ones the first
            rows[found[order]], in_doubt[found] = same["row"].to_numpy()[order], False
        other_size = in_doubt & (known[:, 0] != stamps[:, 0])
        failed = np.zeros(len(rows), dtype=bool)
        if self._remembered:
            listed = pc.is_in(paths, value_set=pa.array(self._remembered, pa.large_string()))
            for i in np.flatnonzero(listed.to_numpy(zero_copy_only=False)):
                stamp = (int(stamps[i, 0]), int(stamps[i, 1]))
                path = paths[int(i)].as_py()
                asked = self._remembered_of(path) if rows[i] < 0 else in_doubt[i] and self._failures_of(path, stamp)
                failed[i] = any(self._is_final(failure) for failure in asked or ())
        return Found(rows, failed, other_size, in_doubt & ~other_size)

    @property
    def failures(self) -> dict[str, DecodeFailure]:
        """The clips that failed and have no embedding, by path: one made later supersedes the failure."""
        paths = list(self._remembered)
        embedded = self._index_in(pa.array(paths, pa.string())) >= 0
        return {path: self._remembered[path][-1][1] for path, has in zip(paths, embedded, strict=True) if not has}

    def failure(self, path: str, stamp: Stamp) -> DecodeFailure | None:
        """Why a clip failed: of its file as it is now where that is known, else as it was."""
        found = self._failures_of(path, stamp) or self._remembered_of(path)
        return next((failure for failure in reversed(found) if self._is_final(failure)), found[-1] if found else None)

    def partial(self, rows: Int64) -> dict[int, str]:
        """Of these store rows, those of clips that could not be decoded to their end: place in `rows` -> what not."""
        known = np.fromiter(self._partial, dtype=np.int64, count=len(self._partial))
        return {int(i): self._partial[int(rows[i])] for i in np.flatnonzero(np.isin(rows, known))}

    def earlier(self, paths: Any) -> dict[str, str]:
        """Of those of these clips (Arrow strings) that parts know already, the names of these parts, by path: they
        tell a new part from an earlier one of the same clips."""
        known: dict[str, list[str]] = {}
        for row in np.flatnonzero(np.isin(self._first_row, self._index_in(paths))):
            known.setdefault(self.paths[int(row)].as_py(), []).append(self.part_file(self._part_of(int(row))).name)
        paths = paths.cast(pa.large_string())
        listed = pc.is_in(paths, value_set=pa.array(self._remembered, pa.large_string()))
        for path in paths.filter(listed).to_pylist():
            known.setdefault(path, []).extend(part for part, _ in self._remembered[path])
        return {path: " ".join(names) for path, names in known.items()}

    def _index_in(self, paths: Any) -> Int64:
        """The first store row of each path, −1 where there is none."""
        found = pc.index_in(paths.cast(pa.large_string()), value_set=self.paths)
        return np.asarray(found.fill_null(-1).to_numpy(zero_copy_only=False), dtype=np.int64)

    def _remembered_of(self, path: str) -> list[DecodeFailure]:
        return [failure for _, failure in self._remembered.get(path, [])]

    def _is_final(self, failure: DecodeFailure) -> bool:
        """Whether no decoder of today could do better; in a folder that cannot be written none could tell."""
        is_of_today = failure.reason != "undecodable" or failure.decoders == DECODERS
        return is_of_today or not self._is_writable

    def _failures_of(self, path: str, stamp: Stamp) -> list[DecodeFailure]:
        return [failure for failure in self._remembered_of(path) if failure.stamp == stamp]

    def _newest_rows(self) -> Int64:
        """(N,) of each first row of a path, the path's row of the newest file."""
        newest = np.arange(len(self))
        for row in self._later_rows():
            first = self._first_row[row]
            if self._stamps[row, 1] > self._stamps[newest[first], 1]:
                newest[first] = row
        return newest

    def _later_rows(self) -> Int64:
        """The rows of paths that have an earlier row."""
        return np.flatnonzero(self._first_row != np.arange(len(self)))

    def _other_stamps(self, directory: AnyPath | None) -> Any:
        """Arrow table of path, size_bytes, time_ns, row: what `rows` does not find. Of paths with several embeddings
        all of them; and the confirmations, with the row that has the same samples."""
        several = np.flatnonzero(np.isin(self._first_row, self._first_row[self._later_rows()]))
        rows = pa.table([self.paths.take(pa.array(several)), *self._stamps[several].T, several], names=[*_KEYS, "row"])
        confirmed = None if directory is None else read_confirmed(directory)
        if confirmed is None or not len(confirmed):
            return rows
        confirmed = confirmed.set_column(0, "path", confirmed["path"].cast(pa.large_string()))
        at = np.flatnonzero(pc.is_in(self.paths, value_set=confirmed["path"]).to_numpy(zero_copy_only=False))
        sha1 = pa.array([bytes(x) for x in self.facts(at).pcm_sha1], pa.binary(20))
        samples = pa.table([self.paths.take(pa.array(at)), sha1, at], names=["path", "pcm_sha1", "row"])
        matched = confirmed.join(samples, ["path", "pcm_sha1"], join_type="inner")
        return pa.concat_tables([rows, matched.select([*_KEYS, "row"])])

    def facts(self, rows: Int64) -> Facts:
        """The clip facts of these store rows."""

        def column(name: str) -> npt.NDArray[Any]:
            columns = [getattr(part.facts, name) for part in self._parts]
            return np.concatenate(columns)[rows] if columns else np.empty((0, wide[name]) if name in wide else 0)

        wide = {"pcm_sha1": 20, "quality": len(QUALITY)}
        return Facts(*(column(name) for name in ("sample_rate", "num_samples", "rms_db", "pcm_sha1", "quality")))

    def vectors(self, rows: Int64) -> StoreVectors:
        """The vectors of these store rows, as a `records.Vectors`."""
        return StoreVectors(self._places, rows)

    def identity(self, rows: Int64) -> str:
        """Hex digest that changes when the bytes of any part that holds these rows change (parts name their bytes), or
        when another embedding of a path that has several is taken."""
        used: Int64 = np.unique(self.place(rows)[0])
        names = [self.part_file(int(i)).name for i in used]
        for row in rows[np.isin(self._first_row[rows], self._first_row[self._later_rows()])] if len(rows) else ():
            part = self._part_of(int(row))
            names.append(f"{self.part_file(part).name} {row - self._first[part]}")
        return hashlib.sha256("\n".join(names).encode()).hexdigest()

    def place(self, rows: Int64) -> tuple[Int64, Int64]:
        """(part number, byte offset in its file) of each row."""
        return self._places.of(rows)

    def _part_of(self, row: int) -> int:
        return int(np.searchsorted(self._first, row, side="right")) - 1

    def part_file(self, number: int) -> AnyPath:
        return self._parts[number].file


@dataclass(frozen=True, slots=True, eq=False)
class _Places:
    """Where the vectors of a store lie, P parts. first: (P + 1,) the store row of each part's first; offsets: (P,) of
    its vectors in its file, in bytes."""

    files: tuple[AnyPath, ...]
    first: Int64
    offsets: Int64
    dim: int

    def of(self, rows: Int64) -> tuple[Int64, Int64]:
        """(part number, byte offset in its file) of each row."""
        part = np.searchsorted(self.first, rows, side="right") - 1
        return part, self.offsets[part] + (rows - self.first[part]) * (4 * self.dim)

    def of_part(self, number: int) -> Place:
        """Where the vectors of a part behind a URL lie."""
        num_rows = int(self.first[number + 1] - self.first[number])
        return Place(cast(RemotePath, self.files[number]), int(self.offsets[number]), num_rows, self.dim)


class StoreVectors:
    """`records.Vectors` over chosen store rows, read with `pread` in runs of neighbouring rows. Picklable: another
    machine reads them where it sees the store's folder."""

    def __init__(self, places: _Places, rows: Int64) -> None:
        self._places = places
        self._rows = rows
        self._copies = PartCopies()

    def portable(self, rows: Int64) -> StoreVectors:
        """Those of these rows alone, with no more places than they have."""
        chosen = self._rows[rows]
        used, at = np.unique(self._places.of(chosen)[0], return_inverse=True)
        sizes = np.diff(self._places.first)[used]
        places = _Places(
            tuple(self._places.files[part] for part in used),
            np.concatenate([[0], np.cumsum(sizes)]),
            self._places.offsets[used],
            self._places.dim,
        )
        return StoreVectors(places, chosen - self._places.first[used][at] + places.first[at])

    def __getstate__(self) -> tuple[_Places, Int64, Int64]:
        """Runs of rows instead of rows: where an index was embedded in its order, a few per part."""
        starts = np.flatnonzero(np.diff(self._rows, prepend=-2) != 1)
        return self._places, self._rows[starts], np.diff(np.append(starts, len(self._rows)))

    def __setstate__(self, state: tuple[_Places, Int64, Int64]) -> None:
        self._places, starts, lengths = state
        self._copies = PartCopies()
        ends = np.cumsum(lengths)
        self._rows = np.repeat(starts - ends + lengths, lengths) + np.arange(int(lengths.sum()))

    @property
    def shape(self) -> tuple[int, int]:
        return len(self._rows), self._places.dim

    def read(self, start: int, stop: int) -> Float32:
        return self._gather(self._rows[start:stop])

    def take(self, rows: Int64) -> Float32:
        return self._gather(self._rows[rows])

    def name(self, row: int) -> str:
        part = int(self._places.of(self._rows[row : row + 1])[0][0])
        return f"{self._places.files[part].name}, id {id_in_part(self._places.files[part], self._row_in(part, row))}"

    def _row_in(self, part: int, row: int) -> int:
        return int(self._rows[row] - self._places.first[part])

    def _gather(self, rows: Int64) -> Float32:
        dim = self._places.dim
        out = np.empty((len(rows), dim), dtype=np.float32)
        if len(rows) == 0:
            return out
        part, offset = self._places.of(rows)
        if isinstance(self._places.files[int(part[0])], RemotePath):
            self._fetch(rows, part, out)
            return out
        jump = (part[1:] != part[:-1]) | (offset[1:] != offset[:-1] + 4 * dim)
        starts = np.concatenate([[0], np.flatnonzero(jump) + 1, [len(rows)]])
        data = out.reshape(-1).view(np.uint8).data
        opened, descriptor = -1, -1
        try:
            for a, b in itertools.pairwise(starts):
                if part[a] != opened:
                    if descriptor >= 0:
                        os.close(descriptor)
                    opened, descriptor = part[a], os.open(str(self._places.files[int(part[a])]), os.O_RDONLY)
                view = data[a * 4 * dim : b * 4 * dim]
                done = 0
                while done < len(view):
                    got = os.preadv(descriptor, [view[done:]], int(offset[a]) + done)
                    if got == 0:
                        raise UserError(f"{self._places.files[int(part[a])]} became shorter while it was read")
                    done += got
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        return out

    def _fetch(self, rows: Int64, part: Int64, out: Float32) -> None:
        """`_gather` of files behind a URL, part by part."""
        order = np.argsort(part, kind="stable")
        used, starts = np.unique(part[order], return_index=True)
        places_of = np.split(order, starts[1:])
        for first in range(0, len(used), AT_ONCE):
            some = used[first : first + AT_ONCE].tolist()
            found = self._copies.vectors([self._places.of_part(number) for number in some])
            for number, at, vectors in zip(some, places_of[first:], found, strict=False):
                out[at] = vectors[rows[at] - self._places.first[number]]

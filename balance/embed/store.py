"""The embedding store: Arrow parts on disk, keyed by a clip's relative audio path, shared by every run and user.

A part is one Arrow IPC file named `part-<plan>-<checksum>.arrow`: `plan` names the clips that it was made for, so two
jobs agree on who makes what, and `checksum` is the start of the sha256 of its bytes, so a file verifies itself and
there is no second file to lose. It appears by rename. Clips that could not be decoded are remembered in the part's
schema metadata. The price: opening a store reads all of its bytes once a process to check them (about 1 GB/s a core).

Vectors are read with `pread` at the place of the Arrow buffer: mapped pages would count as resident memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from balance.errors import UserError
from balance.records import DecodeFailure, Facts, Float32, Int64
from balance.runtime import files, locks

log = logging.getLogger(__name__)

_CHECKSUM_CHARS = 16
_verified: set[tuple[str, int, int]] = set()  # (path, bytes, mtime_ns) checked by this process


@dataclass(frozen=True, slots=True, eq=False)
class PartRows:
    """The rows of one part: `ids`, `paths` n strings, `embeddings` (n, dim) float32, `facts` n rows."""

    ids: Sequence[str]
    paths: Sequence[str]
    embeddings: Float32
    facts: Facts


def plan_name(paths: Sequence[str], attempts: Sequence[str] = ()) -> str:
    """The name of the part that is made for these clips. attempts: of each clip, the parts where it failed before."""
    digest = hashlib.sha256()
    for text in (*paths, *attempts):
        digest.update(text.encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()[:16]


def part_done(directory: Path, plan: str) -> bool:
    """Whether the part of this plan is there."""
    return any(directory.glob(f"part-{plan}-*.arrow"))


def write_part(
    directory: Path, plan: str, rows: PartRows, failures: Sequence[DecodeFailure], made_by: dict[str, Any]
) -> Path:
    """Write one part under a temporary name, then rename it to the name that holds its checksum.

    made_by: device, batch size, library versions: what may differ between parts of one store.
    """
    dim = rows.embeddings.shape[1]
    values = pa.array(np.ascontiguousarray(rows.embeddings, dtype=np.float32).reshape(-1))
    sha1 = pa.array([bytes(x) for x in rows.facts.pcm_sha1], type=pa.binary(20))
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("path", pa.string()),
            ("embedding", pa.list_(pa.field("item", pa.float32()), dim)),
            ("sample_rate", pa.int32()),
            ("num_samples", pa.int64()),
            ("rms_db", pa.float32()),
            ("pcm_sha1", pa.binary(20)),
        ],
        metadata={
            "balance.made_by": json.dumps(made_by, sort_keys=True),
            "balance.failures": json.dumps([[f.id, f.path, f.reason, f.detail] for f in failures]),
        },
    )
    batch = pa.record_batch(
        [
            pa.array(rows.ids, pa.string()),
            pa.array(rows.paths, pa.string()),
            pa.FixedSizeListArray.from_arrays(values, dim).cast(schema.field("embedding").type),
            pa.array(rows.facts.sample_rate, pa.int32()),
            pa.array(rows.facts.num_samples, pa.int64()),
            pa.array(rows.facts.rms_db, pa.float32()),
            sha1,
        ],
        schema=schema,
    )
    with files.draft(directory / f"{plan}.arrow") as file:
        with pa.ipc.new_file(file, schema) as writer:
            writer.write_batch(batch)
        file.close()
        checksum = files.sha256_file(Path(file.name))[:_CHECKSUM_CHARS]
        final = directory / f"part-{plan}-{checksum}.arrow"
        os.replace(file.name, final)
    return final


def lock_path(directory: Path, plan: str) -> Path:
    """The lock of the one who makes this plan's part."""
    return directory / f"lock-{plan}"


def remove_leftovers(directory: Path) -> None:
    """Remove what killed jobs left: locks that nobody alive holds, and temporary files of plans that nobody holds."""
    for lock in directory.glob("lock-*"):
        if locks.is_stale(lock):
            lock.unlink(missing_ok=True)
    for leftover in directory.glob("tmp-*.arrow"):
        if not lock_path(directory, leftover.name.split("-")[1]).exists():
            leftover.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    file: Path
    paths: Any  # Arrow string array
    ids: Any
    offset: int  # of the embedding buffer in the file
    dim: int
    facts: Facts
    failures: list[DecodeFailure]


def _read_part(file: Path) -> _Part | None:
    """A part without its vectors; None if its bytes are damaged (it is then removed where that is allowed)."""
    try:
        stat = file.stat()
    except FileNotFoundError:  # found damaged and removed by another job just now
        return None
    key = (str(file), stat.st_size, stat.st_mtime_ns)
    if key not in _verified:
        if files.sha256_file(file)[:_CHECKSUM_CHARS] != file.stem.rsplit("-", 1)[1]:
            log.warning("%s is damaged (its checksum does not match): not used, made again", file.name)
            with contextlib.suppress(OSError):
                file.unlink()
            return None
        _verified.add(key)
    with pa.memory_map(str(file)) as source:
        base = source.read_buffer().address
        source.seek(0)
        reader = pa.ipc.open_file(source)
        batch = reader.get_batch(0)
        embedding = batch.column("embedding")
        buffer = embedding.values.buffers()[1]
        sha1 = np.frombuffer(b"".join(batch.column("pcm_sha1").to_pylist()), dtype=np.uint8).reshape(-1, 20)
        empty = pa.array([], pa.string())  # concatenating copies off the map, so that it can be closed
        return _Part(
            file=file,
            paths=pa.concat_arrays([batch.column("path"), empty]),
            ids=pa.concat_arrays([batch.column("id"), empty]),
            offset=0 if buffer is None or len(batch) == 0 else buffer.address - base,
            dim=embedding.type.list_size,
            facts=Facts(
                batch.column("sample_rate").to_numpy().copy(),
                batch.column("num_samples").to_numpy().copy(),
                batch.column("rms_db").to_numpy().copy(),
                sha1.copy(),
            ),
            failures=[DecodeFailure(*x) for x in json.loads(reader.schema.metadata[b"balance.failures"])],
        )


class Store:
    """What a store's folder held when it was opened. `rows()` finds clips; `vectors()` and `facts()` read them."""

    def __init__(self, directory: Path, *, ignore: bool = False) -> None:
        """Open and check every part. ignore: as if there were none. UserError for parts of different dimensions."""
        self.directory = directory
        names = [] if ignore else sorted(directory.glob("part-*-*.arrow"))
        with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
            parts = [part for part in pool.map(_read_part, names) if part is not None]
        self._parts = [part for part in parts if len(part.paths)]
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
        # An embedding made later supersedes a failure remembered earlier.
        remembered = {f.path: f for part in parts for f in part.failures}
        self._remembered_by: dict[str, list[str]] = {}
        for part in parts:
            for f in part.failures:
                self._remembered_by.setdefault(f.path, []).append(part.file.name)
        embedded = pc.is_in(pa.array(list(remembered), pa.string()), value_set=self.paths).to_pylist()
        self.failures = {
            path: failure for (path, failure), done in zip(remembered.items(), embedded, strict=True) if not done
        }

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

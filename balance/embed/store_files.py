"""The files of an embedding store, which verify themselves: parts, and confirmations of media that were copied.

A part is one Arrow IPC file named `part-<plan>-<checksum>.arrow`: `plan` names the clips that it was made for, so two
jobs agree on who makes what, and `checksum` is the start of the sha256 of its bytes: there is no second file to lose.
It appears by rename. Its schema metadata hold what has no column of its own: the stamps (size and modification time) of
the media files, the clips that could not be decoded, or not to their end, `QUALITY` of the others, what made it.
`confirmed-<name>-<checksum>.arrow` says of files with another modification time that they decode to the same samples.
Behind a URL a file appears by one request, and there are no locks: what a driver hands out is made once, and twice does
no harm. The price: reading a file reads all of its bytes to check them (about 1 GB/s a core).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from balance.audio.decode import DECODERS
from balance.records import NO_STAMP, QUALITY, DecodeFailure, Facts, Float32, Int64
from balance.runtime import files, locks
from balance.runtime.remote import AnyPath, RemotePath

log = logging.getLogger(__name__)

_CHECKSUM_CHARS = 16


@dataclass(frozen=True, slots=True, eq=False)
class PartRows:
    """The rows of one part: `ids`, `paths` n strings, `embeddings` (n, dim) float32, `facts` n rows, `stamps` (n, 2)
    int64 of the media files, None where they are unknown; partial: path -> what could not be decoded of the clip."""

    ids: Sequence[str]
    paths: Sequence[str]
    embeddings: Float32
    facts: Facts
    stamps: Int64 | None = None
    partial: Mapping[str, str] = field(default_factory=dict)


def part_done(directory: AnyPath, plan: str) -> bool:
    """Whether the part of this plan is there."""
    return any(directory.glob(f"part-{plan}-*.arrow"))


def write_part(
    directory: AnyPath, plan: str, rows: PartRows, failures: Sequence[DecodeFailure], made_by: dict[str, Any]
) -> AnyPath:
    """Write one part, which appears under the name that holds its checksum.

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
            "balance.failures": json.dumps([[f.id, f.path, f.reason, f.detail, f.stamp] for f in failures]),
            "balance.decoders": DECODERS,
            "balance.partial": json.dumps(dict(rows.partial)),
            **({} if rows.facts.quality is None else {"balance.quality": _quality_text(rows.facts.quality)}),
            **({} if rows.stamps is None else {"balance.stamps": json.dumps(rows.stamps.T.tolist())}),
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
    return write_batch(directory, "part", plan, batch)


def write_batch(directory: AnyPath, kind: str, name: str, batch: Any) -> AnyPath:
    """One record batch as the file `kind-name-checksum.arrow`, which appears by rename; checksum: of its bytes."""
    if isinstance(directory, RemotePath):
        return _put_batch(directory, kind, name, batch)
    with files.draft(directory / f"{name}.arrow") as file:
        with pa.ipc.new_file(file, batch.schema) as writer:
            writer.write_batch(batch)
        file.close()
        final = directory / f"{kind}-{name}-{files.sha256_file(Path(file.name))[:_CHECKSUM_CHARS]}.arrow"
        files.replace(file.name, final)
    return final


def _put_batch(directory: RemotePath, kind: str, name: str, batch: Any) -> RemotePath:
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    data = sink.getvalue()
    final = directory / f"{kind}-{name}-{_checksum(data)}.arrow"
    final.write_bytes(data)
    return final


def _checksum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:_CHECKSUM_CHARS]


def is_intact(file: Path) -> bool:
    """Whether a file's bytes have the checksum of its name; one that is damaged is removed where that is allowed."""
    if files.sha256_file(file)[:_CHECKSUM_CHARS] == _checksum_of(file):
        return True
    _refuse_damaged(file)
    return False


def fetch(file: AnyPath, connection: Any = None) -> bytes | None:
    """A file's bytes, which have the checksum of its name; None where the file is gone, or damaged: then it is removed.
    connection: as of `RemotePath.read_whole`. Raises Unreachable."""
    for _ in range(2):  # it may have been damaged on its way
        try:
            data = file.read_bytes() if isinstance(file, Path) else file.read_whole(connection)
        except FileNotFoundError:
            return None
        if _checksum(data) == _checksum_of(file):
            return data
    _refuse_damaged(file)
    return None


def _checksum_of(file: AnyPath) -> str:
    """What its name says."""
    return file.stem.rsplit("-", 1)[1]


def _refuse_damaged(file: AnyPath) -> None:
    log.warning("%s is damaged (its checksum does not match): not used, made again", file.name)
    with contextlib.suppress(OSError):
        file.unlink()


def lock_path(directory: AnyPath, plan: str) -> AnyPath:
    """The lock of the one who makes this plan's part."""
    return directory / f"lock-{plan}"


def remove_leftovers(directory: AnyPath) -> None:
    """Remove what killed jobs left: locks that nobody alive holds, and temporary files of plans that nobody holds.
    Behind a URL they leave nothing."""
    if isinstance(directory, RemotePath):
        return
    for lock in directory.glob("lock-*"):
        locks.remove_if_stale(lock)
    for leftover in directory.glob("tmp-*.arrow"):
        if not lock_path(directory, leftover.name.split("-")[1]).exists():
            files.remove_left_over(leftover)


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A part without its vectors.

    version: (bytes, modification time in ns) of the file when it was checked; paths, ids: Arrow strings, n rows;
    offset: where the embeddings begin in the file; dim: of an embedding; stamps: (n, 2) of the media files, −1 where
    unknown (earlier versions wrote none); failures: clips that could not be embedded; partial: as in `PartRows`.
    """

    file: AnyPath
    version: tuple[int, int]
    paths: Any
    ids: Any
    offset: int
    dim: int
    facts: Facts
    stamps: Int64
    failures: list[DecodeFailure]
    partial: Mapping[str, str]


def version_of(file: AnyPath) -> tuple[int, int] | None:
    """(bytes, modification time in ns) of a file; None where there is none. Behind a URL files are replaced by the same
    bytes alone, and are not asked for one by one."""
    if isinstance(file, RemotePath):
        return 0, 0
    try:
        stat = file.stat()
    except FileNotFoundError:
        return None
    return stat.st_size, stat.st_mtime_ns


def read_part(file: AnyPath, connection: Any = None) -> Part | None:
    """Check and read a part; None if its bytes are damaged (it is then removed where that is allowed) or gone.
    connection: as of `RemotePath.read_whole`."""
    version = version_of(file)
    if version is None:  # found damaged and removed by another job just now
        return None
    if isinstance(file, RemotePath):
        data = fetch(file, connection)
        return None if data is None else _part_of(file, version, pa.BufferReader(data))
    return _part_of(file, version, pa.memory_map(str(file))) if is_intact(file) else None


def _part_of(file: AnyPath, version: tuple[int, int], opened: Any) -> Part:
    """opened: the file as Arrow reads it."""
    with opened as source:
        base = source.read_buffer().address
        source.seek(0)
        reader = pa.ipc.open_file(source)
        batch = reader.get_batch(0)
        embedding = batch.column("embedding")
        buffer = embedding.values.buffers()[1]
        sha1 = np.frombuffer(b"".join(batch.column("pcm_sha1").to_pylist()), dtype=np.uint8).reshape(-1, 20)
        empty = pa.array([], pa.string())  # concatenating copies off the map, so that it can be closed
        return Part(
            file=file,
            version=version,
            paths=pa.concat_arrays([batch.column("path"), empty]),
            ids=pa.concat_arrays([batch.column("id"), empty]),
            offset=0 if buffer is None or len(batch) == 0 else buffer.address - base,
            dim=embedding.type.list_size,
            facts=Facts(
                batch.column("sample_rate").to_numpy().copy(),
                batch.column("num_samples").to_numpy().copy(),
                batch.column("rms_db").to_numpy().copy(),
                sha1.copy(),
                _quality_of(reader.schema.metadata, len(batch)),
            ),
            stamps=_stamps_of(reader.schema.metadata, len(batch)),
            failures=_failures_of(reader.schema.metadata),
            partial=json.loads(reader.schema.metadata.get(b"balance.partial", b"{}")),
        )


def id_in_part(file: AnyPath, row: int) -> str:
    """The id of a row, for messages."""
    with pa.memory_map(str(file)) if isinstance(file, Path) else pa.BufferReader(file.read_whole()) as source:
        return str(pa.ipc.open_file(source).get_batch(0).column("id")[row].as_py())


def _stamps_of(metadata: dict[bytes, bytes], num_rows: int) -> Int64:
    if b"balance.stamps" not in metadata:
        return np.full((num_rows, 2), -1, dtype=np.int64)
    return np.array(json.loads(metadata[b"balance.stamps"]), dtype=np.int64).reshape(2, num_rows).T


def _quality_text(quality: Float32) -> str:
    """Column by column, with as many digits as a float32 has."""
    columns = zip(QUALITY, quality.T, strict=True)
    return json.dumps({name: [float(f"{value:.7g}") for value in column] for name, column in columns})


def _quality_of(metadata: dict[bytes, bytes], num_rows: int) -> Float32:
    """(num_rows, len(QUALITY)), NaN where earlier versions wrote none."""
    found = json.loads(metadata.get(b"balance.quality", b"{}"))
    quality = np.full((num_rows, len(QUALITY)), np.nan, dtype=np.float32)
    for at, name in enumerate(QUALITY):
        if name in found:
            quality[:, at] = found[name]
    return quality


def _failures_of(metadata: dict[bytes, bytes]) -> list[DecodeFailure]:
    decoders = metadata.get(b"balance.decoders", b"").decode()

    def failure(id: str, path: str, reason: str, detail: str, stamp: Sequence[int] = NO_STAMP) -> DecodeFailure:
        size_bytes, time_ns = stamp
        return DecodeFailure(id, path, reason, detail, (size_bytes, time_ns), decoders)

    return [failure(*clip) for clip in json.loads(metadata[b"balance.failures"])]


_CONFIRMED = pa.schema(
    [("path", pa.string()), ("size_bytes", pa.int64()), ("time_ns", pa.int64()), ("pcm_sha1", pa.binary(20))]
)


def write_confirmed(directory: AnyPath, paths: Any, stamps: Int64, pcm_sha1: npt.NDArray[np.uint8]) -> AnyPath:
    """Write down that the files of `paths` (Arrow strings, (n,)) have these stamps (n, 2) and samples (n, 20)."""
    sha1 = pa.array([bytes(x) for x in pcm_sha1], pa.binary(20))
    columns = [paths.cast(pa.string()), pa.array(stamps[:, 0]), pa.array(stamps[:, 1]), sha1]
    name = secrets.token_hex(8)
    with locks.acquire(lock_path(directory, name)) or contextlib.nullcontext():  # its draft is no left-over
        return write_batch(directory, "confirmed", name, pa.record_batch(columns, schema=_CONFIRMED))


def read_confirmed(directory: AnyPath) -> Any:
    """All confirmations of a store: Arrow table of path, size_bytes, time_ns, pcm_sha1."""
    batches = []
    found: Iterable[AnyPath] = directory.glob("confirmed-*-*.arrow")
    for file in sorted(found):
        if (data := fetch(file)) is not None:
            batches.append(pa.ipc.open_file(data).get_batch(0))
    return pa.Table.from_batches(batches, schema=_CONFIRMED)

"""One part of the embedding store: an Arrow IPC file that verifies itself, and the files beside it while it is made.

A part is named `part-<plan>-<checksum>.arrow`: `plan` names the clips that it was made for, so two jobs agree on who
makes what, and `checksum` is the start of the sha256 of its bytes, so there is no second file to lose. It appears by
rename. Clips that could not be decoded, or not to their end, are remembered in its schema metadata. The price: reading
a part reads all of its bytes to check them (about 1 GB/s a core).
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from balance.records import DecodeFailure, Facts, Float32
from balance.runtime import files, locks

log = logging.getLogger(__name__)

_CHECKSUM_CHARS = 16


@dataclass(frozen=True, slots=True, eq=False)
class PartRows:
    """The rows of one part: `ids`, `paths` n strings, `embeddings` (n, dim) float32, `facts` n rows; partial: path ->
    what could not be decoded of the clip."""

    ids: Sequence[str]
    paths: Sequence[str]
    embeddings: Float32
    facts: Facts
    partial: Mapping[str, str] = field(default_factory=dict)


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
            "balance.partial": json.dumps(dict(rows.partial)),
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
        files.replace(file.name, final)
    return final


def lock_path(directory: Path, plan: str) -> Path:
    """The lock of the one who makes this plan's part."""
    return directory / f"lock-{plan}"


def remove_leftovers(directory: Path) -> None:
    """Remove what killed jobs left: locks that nobody alive holds, and temporary files of plans that nobody holds."""
    for lock in directory.glob("lock-*"):
        locks.remove_if_stale(lock)
    for leftover in directory.glob("tmp-*.arrow"):
        if not lock_path(directory, leftover.name.split("-")[1]).exists():
            files.remove_left_over(leftover)


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A part without its vectors.

    version: (bytes, modification time in ns) of the file when it was checked; paths, ids: Arrow strings, n rows;
    offset: where the embeddings begin in the file; dim: of an embedding; failures: clips that could not be embedded;
    partial: as in `PartRows`.
    """

    file: Path
    version: tuple[int, int]
    paths: Any
    ids: Any
    offset: int
    dim: int
    facts: Facts
    failures: list[DecodeFailure]
    partial: Mapping[str, str]


def version_of(file: Path) -> tuple[int, int] | None:
    """(bytes, modification time in ns) of a file; None where there is none."""
    try:
        stat = file.stat()
    except FileNotFoundError:
        return None
    return stat.st_size, stat.st_mtime_ns


def read_part(file: Path) -> Part | None:
    """Check and read a part; None if its bytes are damaged (it is then removed where that is allowed) or gone."""
    version = version_of(file)
    if version is None:  # found damaged and removed by another job just now
        return None
    if files.sha256_file(file)[:_CHECKSUM_CHARS] != file.stem.rsplit("-", 1)[1]:
        log.warning("%s is damaged (its checksum does not match): not used, made again", file.name)
        with contextlib.suppress(OSError):
            file.unlink()
        return None
    with pa.memory_map(str(file)) as source:
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
            ),
            failures=[DecodeFailure(*x) for x in json.loads(reader.schema.metadata[b"balance.failures"])],
            partial=json.loads(reader.schema.metadata.get(b"balance.partial", b"{}")),
        )

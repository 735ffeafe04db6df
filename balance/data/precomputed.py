"""The user's own vectors (`dataset.format=embeddings`): files under `dataset.root` -> ids, labels and vectors.

`{name}.npy` with `{name}.ids.txt`, or `{name}.parquet` with `id` and `embedding`, or a folder `{name}/` of one
`{id}.npz` a clip (key `v`). Vectors are read with pread, never mapped: pages of a map count as resident memory, and the
pool may be larger than memory. Parquet and npz cannot be read at a row, so they are copied once into an unnamed
temporary file of raw float32; the price is that much disk for the run. Labels and lines come from `{name}.csv`.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import weakref
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from balance.data.clip_ids import check_ids, read_id_file, refuse_duplicates
from balance.data.locate import NoSuchIndex, candidates
from balance.data.vipant_index import read_index
from balance.errors import UserError
from balance.records import Float32, Index, Int64, Labels
from balance.runtime.wording import listed

BLOCK_BYTES = 16 << 20
SUFFIXES = (".npy", ".parquet", ".csv")
_ANY_SUFFIX = r"(\.npy|\.parquet|\.csv)+$"


class FlatVectors:
    """`records.Vectors`: raw little-endian float32 rows in one open file.

    Holds the descriptor, so the file may be unnamed; safe to read from several threads. `source` and `ids` only serve
    `name`.
    """

    def __init__(self, descriptor: int, offset_bytes: int, shape: tuple[int, int], source: str, ids: Any) -> None:
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


@dataclass(frozen=True, slots=True, eq=False)
class PrecomputedSplit:
    """A split whose vectors the user brought: every row of `index` has its vector, in the order of the vectors.

    index.lines is None where there is no `{name}.csv`; labels and paths are then empty. sha256: hex, of the vectors'
    float32 row-major bytes.
    """

    index: Index
    vectors: FlatVectors
    sha256: str


def read_vectors(root: Path, value: str, *, scratch: Path | None = None) -> PrecomputedSplit:
    """One split. `value` is a bare name under `root`, or a path (with a slash or a known suffix).

    scratch: a folder for the temporary copy of parquet and npz (None: the system's). NoSuchIndex where there are no
    such vectors; UserError for everything wrong with them.
    """
    base = _base(root, value)
    if (path := base.with_name(base.name + ".npy")).is_file():
        ids = read_id_file(base.with_name(base.name + ".ids.txt"))
        vectors = _open_npy(path, ids)
    elif (path := base.with_name(base.name + ".parquet")).is_file():
        vectors, ids = _spool_parquet(path, scratch)
    elif base.is_dir():
        path = base
        vectors, ids = _spool_folder(path, scratch)
    else:
        raise NoSuchIndex(
            f"no vectors {value!r} under {base.parent} (looked for {base.name}.npy with {base.name}.ids.txt, "
            f"{base.name}.parquet, {base.name}/). {_existing_vectors(base.parent)}"
        )
    refuse_duplicates(str(path), ids)
    return PrecomputedSplit(_index(base, path.name, ids), vectors, _sha256(vectors))


def read_ids(root: Path, value: str) -> Index:
    """The ids of `dataset.eval`, which needs no vectors: from `{name}.ids.txt`, else `{name}.csv`, else the vectors."""
    base = _base(root, value)
    if (path := base.with_name(base.name + ".ids.txt")).is_file():
        ids = read_id_file(path)
        refuse_duplicates(str(path), ids)
        return _index(base, path.name, ids)
    if (path := base.with_name(base.name + ".csv")).is_file():
        return read_index(path)
    try:
        return read_vectors(root, value).index
    except NoSuchIndex:
        raise NoSuchIndex(
            f"no ids {value!r} under {base.parent} (looked for {base.name}.ids.txt, {base.name}.csv, "
            f"{base.name}.parquet, {base.name}/; their vectors are not needed). {_existing_vectors(base.parent)}"
        ) from None


def files_beside(root: Path, value: str) -> list[Path]:
    """The ids and the index of a split, those that are there."""
    base = _base(root, value)
    paths = (base.with_name(base.name + suffix) for suffix in (".ids.txt", ".csv"))
    return [path for path in paths if path.is_file()]


def refuse_other_dims(**splits: PrecomputedSplit) -> None:
    """UserError where two splits' vectors have different dimensions: they come from different models."""
    dims = {name: split.vectors.shape[1] for name, split in splits.items()}
    if len(set(dims.values())) > 1:
        said = ", ".join(f"{name} ({splits[name].index.file}) have {dim}" for name, dim in dims.items())
        raise UserError(f"vectors of different dimensions cannot be compared: {said}. Use one model for all")


def _base(root: Path, value: str) -> Path:
    """The files' path without suffix: of the first place where there are any, else of the first place."""
    bases = [re.sub(_ANY_SUFFIX, "", str(path)) for path in candidates(root, value, SUFFIXES)]
    forms = ("", *SUFFIXES, ".ids.txt")
    return Path(next((base for base in bases if any(os.path.exists(base + form) for form in forms)), bases[0]))


def _existing_vectors(folder: Path) -> str:
    if not folder.is_dir():
        return f"There is no folder {folder}."
    names = sorted(p.name for p in folder.iterdir() if p.suffix in (".npy", ".parquet") or p.is_dir())
    return f"There are: {listed(names, 12)}."


def _open_npy(path: Path, ids: Any) -> FlatVectors:
    with path.open("rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            if version == (1, 0):
                shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
            else:
                shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
        except ValueError as error:
            raise UserError(f"{path}: not a .npy file ({str(error).splitlines()[0]})") from None
        offset_bytes = file.tell()
        size_bytes = os.fstat(file.fileno()).st_size
    if dtype != np.dtype("<f4") or len(shape) != 2 or fortran:
        order = "column" if fortran else "row"
        kind = dtype.name if dtype.isnative else f"big-endian {dtype.name}"
        raise UserError(
            f"{path}: {kind} of shape {shape}, {order}-major; vectors must be float32 (n, dim), "
            "row-major: numpy.save(file, numpy.ascontiguousarray(x, dtype='float32'))"
        )
    num_rows, dim = int(shape[0]), int(shape[1])
    if num_rows == 0 or dim == 0:
        raise UserError(f"{path}: shape {shape} holds no vectors")
    if size_bytes < offset_bytes + num_rows * dim * 4:
        raise UserError(f"{path}: cut short: {size_bytes} bytes, {offset_bytes + num_rows * dim * 4} expected")
    if len(ids) != num_rows:
        raise UserError(
            f"{path}: {num_rows} vectors, but {path.stem}.ids.txt has {len(ids)} ids; each line of it names one row"
        )
    return FlatVectors(os.open(path, os.O_RDONLY), offset_bytes, (num_rows, dim), path.name, ids)


def _spool_parquet(path: Path, scratch: Path | None) -> tuple[FlatVectors, Any]:
    try:
        file = pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: not a parquet file ({str(error).splitlines()[0]})") from None
    with file, tempfile.TemporaryFile(dir=scratch) as copy:
        schema = file.schema_arrow
        for column in ("id", "embedding"):
            if schema.get_field_index(column) < 0:
                raise UserError(f"{path}: no column {column!r}; it has {', '.join(schema.names)}")
        kind = schema.field("embedding").type
        is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
        if not is_list or kind.value_type != pa.float32():
            raise UserError(f"{path}: column 'embedding' is {kind}; it must be a list of float32, one length")
        if not pa.types.is_string(schema.field("id").type) and not pa.types.is_large_string(schema.field("id").type):
            raise UserError(f"{path}: column 'id' is {schema.field('id').type}; it must be string")
        num_rows = file.metadata.num_rows
        if num_rows == 0:
            raise UserError(f"{path}: holds no vectors")
        ids: list[Any] = []
        dim, row = -1, 0
        for batch in _batches(file, path):
            lengths = pc.fill_null(pc.list_value_length(batch.column("embedding")), -1).to_numpy()
            dim = int(lengths[0]) if dim < 0 else dim
            if (wrong := np.flatnonzero((lengths != dim) | (lengths < 1))).size:
                at = int(wrong[0])
                if lengths[at] < 0:
                    raise UserError(f"{path} row {row + at}: null instead of a vector")
                raise UserError(f"{path} row {row + at}: a vector of {lengths[at]} values where the first has {dim}")
            flat = pc.list_flatten(batch.column("embedding"))
            names = batch.column("id").cast(pa.string())
            if flat.null_count or names.null_count:
                raise UserError(f"{path}: null in rows {row} … {row + batch.num_rows - 1} of 'id' or 'embedding'")
            copy.write(flat.to_numpy().data)
            ids.append(names)
            row += batch.num_rows
        copy.flush()
        all_ids = pa.concat_arrays(ids)
        check_ids(all_ids, lambda row: f"{path} row {row}")
        return FlatVectors(os.dup(copy.fileno()), 0, (num_rows, dim), path.name, all_ids), all_ids


def _batches(file: Any, path: Path) -> Iterator[Any]:
    try:
        yield from file.iter_batches(batch_size=4096, columns=["id", "embedding"])
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: damaged ({str(error).splitlines()[0]})") from None


def _spool_folder(path: Path, scratch: Path | None) -> tuple[FlatVectors, Any]:
    ids = sorted(entry.name.removesuffix(".npz") for entry in os.scandir(path) if entry.name.endswith(".npz"))
    if not ids:
        raise UserError(f"{path}/: holds no .npz file; one {{id}}.npz per clip with key v is expected")
    all_ids = pa.array(ids, type=pa.string())
    dim = -1
    with tempfile.TemporaryFile(dir=scratch) as copy:
        for name in ids:
            vector = _read_npz(path / f"{name}.npz")
            dim = len(vector) if dim < 0 else dim
            if len(vector) != dim:
                raise UserError(f"{path / name}.npz: a vector of {len(vector)} values where {ids[0]}.npz has {dim}")
            copy.write(vector.data)
        copy.flush()
        return FlatVectors(os.dup(copy.fileno()), 0, (len(ids), dim), f"{path.name}/", all_ids), all_ids


def _read_npz(path: Path) -> Float32:
    try:
        with np.load(path, allow_pickle=False) as archive:
            vector = archive["v"]
    except KeyError:
        raise UserError(f"{path}: no key 'v' in it") from None
    except (ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:  # TypeError: it is a .npy
        raise UserError(f"{path}: cannot be read as .npz ({type(error).__name__})") from None
    if vector.dtype != np.float32 or vector.size == 0 or vector.size != vector.shape[-1]:
        raise UserError(f"{path}: 'v' is {vector.dtype} of shape {vector.shape}; one float32 vector is expected")
    return np.ascontiguousarray(vector.reshape(-1), dtype=np.float32)


def _index(base: Path, file: str, ids: Any) -> Index:
    """The rows of the vectors: from `{name}.csv` where it is there."""
    csv = base.with_name(base.name + ".csv")
    if not csv.is_file():
        nothing = np.zeros(len(ids) + 1, dtype=np.int64)
        paths = pa.array([""], type=pa.string()).take(pa.array(np.zeros(len(ids), dtype=np.int64)))
        return Index(file, ids, paths, Labels((), nothing, np.empty(0, dtype=np.int32)))
    index = read_index(csv)
    rows = pc.index_in(ids, value_set=index.ids)
    if rows.null_count:
        lost = ids.filter(pc.is_null(rows)).to_pylist()
        raise UserError(f"{csv}: lacks {len(lost)} of the {len(ids)} ids of {file}: {listed(lost)}")
    return index.take(rows.to_numpy().astype(np.int64))


def _blocks(vectors: FlatVectors) -> Iterator[Float32]:
    num_rows, dim = vectors.shape
    step = max(1, BLOCK_BYTES // (4 * dim))
    for start in range(0, num_rows, step):
        yield vectors.read(start, min(start + step, num_rows))


def _sha256(vectors: FlatVectors) -> str:
    digest = hashlib.sha256()
    for block in _blocks(vectors):
        digest.update(block.data)
    return digest.hexdigest()

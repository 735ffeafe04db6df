"""Files of the user's own vectors -> `FlatVectors`: `.npy`, parquet, or a folder of one `.npz` per clip.

A `.npy` of float32 rows is read where it lies. All else is copied as float32 (`flat_vectors.spool`): float16, float64
and the other byte order are converted, a column-major matrix is turned, each with a warning. Every file is checked as
far as its format can: sizes of a `.npy`, checksums of a `.npz`, text of a parquet file.
"""

from __future__ import annotations

import io
import logging
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from balance.data import flat_vectors
from balance.data.clip_ids import check_ids, id_array, id_of_path
from balance.data.flat_vectors import AnyFloat, FlatVectors, spool
from balance.data.media import is_clutter
from balance.errors import UserError, damage_named
from balance.records import Strings

log = logging.getLogger(__name__)

_FLOAT_BYTES = (2, 4, 8)


def open_npy(path: Path, ids: Strings, scratch: Path | None) -> FlatVectors:
    """A `.npy` of floats (n, dim), for n ids; UserError says what is wrong with it."""
    with path.open("rb") as file:
        with damage_named(f"{path}: not a .npy file"):
            shape, is_fortran, dtype = _read_npy_header(file)
        offset_bytes = file.tell()
        size_bytes = os.fstat(file.fileno()).st_size - offset_bytes
        if not _is_float(dtype) or len(shape) != 2:
            raise UserError(
                f"{path}: {dtype.name} of shape {shape}; vectors must be floats (n, dim): "
                "numpy.save(file, x.astype('float32'))"
            )
        num_rows, dim = shape
        if num_rows <= 0 or dim <= 0:
            raise UserError(f"{path}: shape {shape} holds no vectors")
        if size_bytes != (expected := num_rows * dim * dtype.itemsize):
            what = "cut short" if size_bytes < expected else "more than its vectors"
            raise UserError(f"{path}: {what}: {size_bytes} bytes of data where shape {shape} needs {expected}")
        if len(ids) != num_rows:
            raise UserError(
                f"{path}: {num_rows} vectors, but {path.stem}.ids.txt has {len(ids)} ids; each line of it names one row"
            )
        if dtype == np.dtype("<f4") and not is_fortran:
            return FlatVectors(os.dup(file.fileno()), offset_bytes, (num_rows, dim), path.name, ids)
        log.warning("%s: %s is converted to float32 rows", path, _kind(dtype, is_fortran))
        return spool(_npy_blocks(file, (num_rows, dim), dtype, is_fortran), dim, path.name, ids, scratch)


def _read_npy_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version in ((2, 0), (3, 0)):  # 3.0 differs in the names of fields alone
        return np.lib.format.read_array_header_2_0(file)
    raise ValueError(f"format version {version}")


def _is_float(dtype: np.dtype[Any]) -> bool:
    return dtype.kind == "f" and dtype.itemsize in _FLOAT_BYTES


def _kind(dtype: np.dtype[Any], is_fortran: bool) -> str:
    return f"{'' if dtype.isnative else 'big-endian '}{dtype.name}{', column-major,' if is_fortran else ''}"


def _npy_blocks(file: BinaryIO, shape: tuple[int, int], dtype: np.dtype[Any], is_fortran: bool) -> Iterator[AnyFloat]:
    """The rows in blocks, (rows, dim) each; file: at its data. A column-major block is gathered column by column."""
    (num_rows, dim), first_byte, size = shape, file.tell(), dtype.itemsize
    step = max(1, flat_vectors.BLOCK_BYTES // (size * dim))
    for start in range(0, num_rows, step):
        rows = min(step, num_rows - start)
        if not is_fortran:
            yield np.frombuffer(file.read(rows * dim * size), dtype).reshape(rows, dim)
            continue
        block = np.empty((rows, dim), dtype=dtype)
        for column in range(dim):
            file.seek(first_byte + (column * num_rows + start) * size)
            block[:, column] = np.frombuffer(file.read(rows * size), dtype)
        yield block


def spool_parquet(path: Path, scratch: Path | None) -> tuple[FlatVectors, Strings]:
    """A parquet file with `id` (string) and `embedding` (lists of floats of one length), and its ids."""
    with damage_named(f"{path}: not a parquet file"):
        file = pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
    with file, damage_named(f"{path}: damaged"):
        _check_columns(path, file.schema_arrow)
        ids = _read_ids(path, file)
        first = next(file.iter_batches(batch_size=1, columns=["embedding"])).column(0)
        dim = int(pc.fill_null(pc.list_value_length(first), -1)[0].as_py())
        return spool(_parquet_blocks(path, file, dim), dim, path.name, ids, scratch), ids


def _check_columns(path: Path, schema: pa.Schema) -> None:
    for column in ("id", "embedding"):
        if schema.get_field_index(column) < 0:
            raise UserError(f"{path}: no column {column!r}; it has {', '.join(schema.names)}")
    kind = schema.field("embedding").type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not is_list or not pa.types.is_floating(kind.value_type):
        raise UserError(f"{path}: column 'embedding' is {kind}; it must be a list of floats, one length")
    if kind.value_type != pa.float32():
        log.warning("%s: %s is converted to float32", path, kind.value_type)
    kind = schema.field("id").type
    if not pa.types.is_string(kind) and not pa.types.is_large_string(kind):
        raise UserError(f"{path}: column 'id' is {kind}; it must be string")


def _read_ids(path: Path, file: pq.ParquetFile) -> Strings:
    column = file.read(["id"]).column(0)
    column.validate(full=True)
    if not len(column):
        raise UserError(f"{path}: holds no vectors")
    ids = pa.concat_arrays(column.cast(pa.string()).chunks)
    check_ids(ids, lambda row: f"{path} row {row}")
    return ids


def _parquet_blocks(path: Path, file: pq.ParquetFile, dim: int) -> Iterator[AnyFloat]:
    row = 0
    for batch in file.iter_batches(batch_size=4096, columns=["embedding"]):
        lists = batch.column(0)
        lengths = pc.fill_null(pc.list_value_length(lists), -1).to_numpy()
        if (wrong := np.flatnonzero((lengths != dim) | (lengths < 1))).size:
            at = int(wrong[0])
            if lengths[at] < 0:
                raise UserError(f"{path} row {row + at}: null instead of a vector")
            raise UserError(f"{path} row {row + at}: a vector of {lengths[at]} values where the first has {dim}")
        flat = pc.list_flatten(lists)
        if flat.null_count:
            raise UserError(f"{path}: null in rows {row} … {row + len(lists) - 1} of 'embedding'")
        yield flat.to_numpy().reshape(len(lists), dim)
        row += len(lists)
    if row != file.metadata.num_rows:
        raise UserError(f"{path}: damaged: {row} vectors where {file.metadata.num_rows} rows are announced")


def spool_folder(path: Path, scratch: Path | None) -> tuple[FlatVectors, Strings]:
    """A folder of `{id}.npz` (or `{id}.p0.npz`), each with one vector under the key `v`, in the order of the names."""
    names = sorted(
        entry.name.removesuffix(".npz")
        for entry in os.scandir(path)
        if entry.name.endswith(".npz") and not is_clutter(entry.name)
    )
    if not names:
        raise UserError(f"{path}/: holds no .npz file; one {{id}}.npz per clip with key v is expected")
    ids = id_array([id_of_path(name) for name in names], lambda row: f"{path / names[row]}.npz")
    dim = len(_read_npz(path / f"{names[0]}.npz"))
    return spool(_npz_vectors(path, names, dim), dim, f"{path.name}/", ids, scratch), ids


def _npz_vectors(path: Path, names: list[str], dim: int) -> Iterator[AnyFloat]:
    converted: set[str] = set()
    for name in names:
        vector = _read_npz(path / f"{name}.npz")
        if len(vector) != dim:
            raise UserError(f"{path / name}.npz: a vector of {len(vector)} values where {names[0]}.npz has {dim}")
        if vector.dtype != np.float32 and vector.dtype.name not in converted:
            converted.add(vector.dtype.name)
            log.warning("%s: %s is converted to float32, here and in other files", path / f"{name}.npz", vector.dtype)
        yield vector


def _read_npz(path: Path) -> AnyFloat:
    """The vector `v` of an archive, (dim,). The member is read to its end, so its checksum is checked."""
    with damage_named(f"{path}: cannot be read as .npz"), zipfile.ZipFile(path) as archive:
        if "v.npy" not in archive.namelist():
            raise UserError(f"{path}: no key 'v' in it")
        vector = np.lib.format.read_array(io.BytesIO(archive.read("v.npy")), allow_pickle=False)
    if not _is_float(vector.dtype) or vector.size == 0 or vector.shape[-1:] != (vector.size,):
        raise UserError(f"{path}: 'v' is {vector.dtype} of shape {vector.shape}; one vector of floats is expected")
    return vector.reshape(-1)

"""Parquet files with the audio in them (Hugging Face style): ids, labels and rows in, references to chosen rows out.

Only the id and label columns are read; the audio stays where it is, and a clip's key names its file and row
(`balance.data.media`). What is written for the chosen clips refers to rows, since copying the audio would double
the data.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from balance.data import media
from balance.data.clip_ids import check_ids, refuse_duplicates
from balance.data.config import ColumnsConfig
from balance.data.containers import find, relative
from balance.data.vipant_index import labels_from_lists
from balance.errors import UserError, damage_named
from balance.records import Index, Labels
from balance.runtime.files import atomic
from balance.runtime.remote import AnyPath


def read_parquet(media_root: AnyPath, value: str, columns: ColumnsConfig) -> Index:
    """Rows of parquet files (Hugging Face style) as an index, in the order of files and rows.

    id: string; audio: struct<bytes: binary, path: string>, one of the two, or binary; labels: list of strings, ids or
    names (columns.labels None: there are none). UserError names file and column where a type is another.
    """
    ids, paths, labels = [], [], []
    for file in find(media_root, value, ".parquet"):
        name = relative(media_root, file)
        source = media.parquet_source(file)
        with damage_named(f"{file}: not a complete parquet file"), pq.ParquetFile(source) as parquet:
            _check_columns(file, parquet.schema_arrow, columns)
            table = parquet.read([column for column in (columns.id, columns.labels) if column is not None])
            table.validate(full=True)
            ids += table.column(columns.id).cast(pa.string()).chunks
            labels += _label_lists(file, table, columns.labels)
        paths += [media.parquet_key(name, row) for row in range(table.num_rows)]
    if not paths:
        raise UserError(f"{value}: empty index: the parquet files hold no rows")
    all_ids = pa.concat_arrays(ids)
    check_ids(all_ids, lambda row: str(media_root / paths[row]))
    refuse_duplicates(value, all_ids)
    of_all = labels_from_lists(pa.concat_arrays(labels))
    return Index(f"{value}.parquet", all_ids, pa.array(paths, type=pa.string()), of_all)


def _label_lists(file: AnyPath, table: pa.Table, column: str | None) -> list[pa.Array]:
    """The labels of one file, as arrays of list<string>; UserError where a label is null."""
    kind = pa.list_(pa.string())
    if column is None:
        return [pa.nulls(table.num_rows, kind)]
    chunks: list[pa.Array] = table.column(column).cast(kind).chunks
    first = 0
    for lists in chunks:
        nulls = pc.is_null(pc.list_flatten(lists))
        if pc.any(nulls).as_py():
            row = first + int(pc.list_parent_indices(lists)[pc.index(nulls, True).as_py()].as_py())
            raise UserError(f"{media.parquet_key(str(file), row)}: null among the labels in column {column!r}")
        first += len(lists)
    return chunks


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_list_of(kind: pa.DataType, is_item: Callable[[pa.DataType], bool]) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(is_list and is_item(kind.value_type))


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_audio(kind: pa.DataType) -> bool:
    if not pa.types.is_struct(kind):
        return _is_bytes(kind)
    fields = {field.name: field.type for field in kind}
    return _is_bytes(fields.get("bytes", pa.null())) or _is_text(fields.get("path", pa.null()))


def _check_columns(file: AnyPath, schema: pa.Schema, columns: ColumnsConfig) -> None:
    wanted = {
        "id": (columns.id, _is_text, "string"),
        "audio": (columns.audio, _is_audio, "struct<bytes: binary, path: string> or binary"),
        "labels": (columns.labels, lambda kind: _is_list_of(kind, _is_text), "list<string> of ids or names"),
    }
    for key, (column, is_right, words) in wanted.items():
        if column is None:
            continue
        if schema.get_field_index(column) < 0:
            names = ", ".join(schema.names)
            none = ", or null for none" if key == "labels" else ""
            raise UserError(f"{file}: no column {column!r} (it has {names}); say dataset.columns.{key}=…{none}")
        kind = schema.field(column).type
        if not is_right(kind):
            raise UserError(f"{file}: column {column!r} is {kind}; dataset.columns.{key} must be {words}")


def _lists_of(labels: Labels) -> pa.Array:
    names = pa.array(labels.names, type=pa.string()).take(pa.array(labels.codes))
    return pa.ListArray.from_arrays(pa.array(labels.offsets, type=pa.int32()), names)


def write_rows(path: Path, chosen: Index, columns: ColumnsConfig) -> None:
    """References: file (relative to the media root) and row (from 0) beside id and labels."""
    keys = [key.rpartition(".parquet row ") for key in chosen.paths.to_pylist()]
    table = pa.table(
        {
            columns.id: chosen.ids,
            "file": pa.array([f"{file}.parquet" for file, _, _ in keys], type=pa.string()),
            "row": pa.array([int(row) for _, _, row in keys], type=pa.int64()),
        }
    )
    if columns.labels is not None:
        table = table.append_column(columns.labels, _lists_of(chosen.labels))
    with atomic(path) as file:
        pq.write_table(table, file)

"""Parquet files with the audio in them (Hugging Face style): ids, labels and rows in, references to chosen rows out.

Only the id and label columns are read; the audio stays where it is, and a clip's key names its file and row
(`balance.data.media`). What is written for the chosen clips refers to rows, since copying the audio would double
the data.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from balance.data import media
from balance.data.clip_ids import check_ids, refuse_duplicates
from balance.data.config import ColumnsConfig
from balance.data.containers import find, relative
from balance.data.vipant_index import labels_from_lists
from balance.errors import UserError
from balance.records import Index, Labels
from balance.runtime.files import atomic


def read_parquet(media_root: Path, value: str, columns: ColumnsConfig) -> Index:
    """Rows of parquet files (Hugging Face style) as an index, in the order of files and rows.

    id: string; audio: struct<bytes: binary, path: string> or binary; labels: list of strings, ids or names. UserError
    names file and column where a type is another.
    """
    ids, paths, labels = [], [], []
    id_column, labels_column = columns.id, columns.labels
    for file in find(media_root, value, ".parquet"):
        name = relative(media_root, file)
        try:
            with pq.ParquetFile(file) as parquet:
                _check_columns(file, parquet.schema_arrow, columns)
                table = parquet.read([id_column, labels_column])
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(f"{file}: not a complete parquet file ({str(error).splitlines()[0]})") from None
        column = table.column(id_column).cast(pa.string())
        lists = table.column(labels_column).combine_chunks()
        if isinstance(lists, pa.ChunkedArray):
            lists = pa.concat_arrays(lists.chunks) if lists.num_chunks else pa.array([], lists.type)
        nulls = pc.is_null(pc.list_flatten(lists))
        if pc.any(nulls).as_py():
            row = int(pc.list_parent_indices(lists)[pc.index(nulls, True).as_py()].as_py())
            raise UserError(f"{media.parquet_key(str(file), row)}: null among the labels in column {labels_column!r}")
        ids += column.chunks
        labels += table.column(labels_column).cast(pa.list_(pa.string())).chunks
        paths += [media.parquet_key(name, row) for row in range(table.num_rows)]
    if not paths:
        raise UserError(f"{value}: empty index: the parquet files hold no rows")
    all_ids = pa.concat_arrays(ids)
    check_ids(all_ids, lambda row: str(media_root / paths[row]))
    refuse_duplicates(value, all_ids)
    of_all = labels_from_lists(pa.concat_arrays(labels))
    return Index(f"{value}.parquet", all_ids, pa.array(paths, type=pa.string()), of_all)


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_list_of(kind: Any, is_item: Any) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(is_list and is_item(kind.value_type))


def _is_bytes(kind: Any) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_audio(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _is_bytes(kind.field("bytes").type)
    return _is_bytes(kind)


def _check_columns(file: Path, schema: Any, columns: ColumnsConfig) -> None:
    wanted = {
        "id": (columns.id, _is_text, "string"),
        "audio": (columns.audio, _is_audio, "struct<bytes: binary, path: string> or binary"),
        "labels": (columns.labels, lambda kind: _is_list_of(kind, _is_text), "list<string> of ids or names"),
    }
    for key, (column, is_right, words) in wanted.items():
        if schema.get_field_index(column) < 0:
            names = ", ".join(schema.names)
            raise UserError(f"{file}: no column {column!r} (it has {names}); say dataset.columns.{key}=…")
        kind = schema.field(column).type
        if not is_right(kind):
            raise UserError(f"{file}: column {column!r} is {kind}; dataset.columns.{key} must be {words}")


def _label_lists(labels: Labels) -> pa.Array:
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
            columns.labels: _label_lists(chosen.labels),
        }
    )
    with atomic(path) as file:
        pq.write_table(table, file)

"""Parquet files and tar shards as indexes: ids, labels and the place of each clip's audio, which stays where it is.

A name X means `X.parquet`, `X-*.parquet` or `X/*.parquet` under the media root (likewise `.tar`), in the order of the
names. Of parquet only the id and label columns are read, of tar the headers and the `.json` members; keys are those
of `balance.data.media`. The price: a tar's headers are walked at every run, some 40 µs a member.
"""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from balance.data import media
from balance.data.vipant_index import NoSuchIndex, labels_from_lists, refuse_duplicates
from balance.errors import UserError
from balance.records import Index


def find(media_root: Path, value: str, suffix: str) -> list[Path]:
    """The container files of a split, sorted by name. NoSuchIndex names those that are there."""
    if "/" in value or value.endswith(suffix):
        given = Path(value)
        files = sorted(given.glob(f"*{suffix}")) if given.is_dir() else [given] if given.is_file() else []
        looked_for = str(given)
    else:
        files = [p for p in [media_root / f"{value}{suffix}"] if p.is_file()]
        files = files or sorted(media_root.glob(f"{value}-*{suffix}")) or sorted(media_root.glob(f"{value}/*{suffix}"))
        looked_for = f"{value}{suffix}, {value}-*{suffix}, {value}/*{suffix} under {media_root}"
    if not files:
        there = sorted(p.relative_to(media_root).as_posix() for p in media_root.glob(f"*{suffix}"))
        there += sorted(f"{p.name}/" for p in media_root.glob("*/") if any(p.glob(f"*{suffix}")))
        said = f"There are: {', '.join(there[:12])}." if there else f"There is no {suffix} file."
        raise NoSuchIndex(f"no {suffix} files {value!r} (looked for {looked_for}). {said}")
    return files


def relative(media_root: Path, file: Path) -> str:
    """A container's path relative to the media root, with slashes. UserError where it lies elsewhere."""
    # The names as given: a link inside the media root counts as being there.
    path = os.path.relpath(os.path.abspath(file), os.path.abspath(media_root))
    if path.startswith(".."):
        raise UserError(f"{file}: not under dataset.media={media_root}; say dataset.media={file.parent}")
    return path


def read_parquet(media_root: Path, value: str, *, id_column: str, audio_column: str, labels_column: str) -> Index:
    """Rows of parquet files (Hugging Face style) as an index, in the order of files and rows.

    id: string; audio: struct<bytes: binary, path: string> or binary; labels: list of strings, ids or names. UserError
    names file and column where a type is another.
    """
    ids, paths, labels = [], [], []
    for file in find(media_root, value, ".parquet"):
        name = relative(media_root, file)
        try:
            with pq.ParquetFile(file) as parquet:
                _check_columns(file, parquet.schema_arrow, id_column, audio_column, labels_column)
                table = parquet.read([id_column, labels_column])
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(f"{file}: not a complete parquet file ({str(error).splitlines()[0]})") from None
        column = table.column(id_column).cast(pa.string())
        if column.null_count:
            row = int(pc.index(pc.is_null(column), True).as_py())
            raise UserError(f"{media.parquet_key(str(file), row)}: no id (null in column {id_column!r})")
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


def _check_columns(file: Path, schema: Any, id_column: str, audio_column: str, labels_column: str) -> None:
    wanted = {
        "id": (id_column, _is_text, "string"),
        "audio": (audio_column, _is_audio, "struct<bytes: binary, path: string> or binary"),
        "labels": (labels_column, lambda kind: _is_list_of(kind, _is_text), "list<string> of ids or names"),
    }
    for key, (column, is_right, words) in wanted.items():
        if schema.get_field_index(column) < 0:
            names = ", ".join(schema.names)
            raise UserError(f"{file}: no column {column!r} (it has {names}); say dataset.columns.{key}=…")
        kind = schema.field(column).type
        if not is_right(kind):
            raise UserError(f"{file}: column {column!r} is {kind}; dataset.columns.{key} must be {words}")


def read_tar(media_root: Path, value: str) -> Index:
    """Members of tar shards (webdataset: `key.flac|mp3|wav…` and `key.json`) as an index, in the order of the shards.

    The key is the member's name up to the first dot of its last part; it is the clip's id. The json is an object whose
    `labels` is a list of strings (absent: none). UserError names shard and member.
    """
    columns = _TarColumns()
    for file in find(media_root, value, ".tar"):
        name = relative(media_root, file)
        try:
            with tarfile.open(file, "r:") as tar:
                columns.add_shard(tar, name)
                if tar.offset >= file.stat().st_size:
                    raise tarfile.ReadError("it ends without the empty blocks that end a tar file: cut off?")
        except (tarfile.TarError, OSError) as error:
            raise UserError(f"{name}: not a complete tar file ({error})") from None
    if not columns.ids:
        raise UserError(f"{value}: empty index: the tar shards hold no audio with a .json beside it")
    ids = pa.array(columns.ids, type=pa.string())
    refuse_duplicates(value, ids)
    return Index(
        f"{value}.tar",
        ids,
        pa.array(columns.paths, type=pa.string()),
        labels_from_lists(pa.array(columns.labels, type=pa.list_(pa.string()))),
        offsets=np.array(columns.offsets, dtype=np.int64),
        sizes=np.array(columns.sizes, dtype=np.int64),
    )


class _TarColumns:
    """What is gathered from the shards, one entry a clip."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.paths: list[str] = []
        self.labels: list[list[str]] = []
        self.offsets: list[int] = []
        self.sizes: list[int] = []

    def add_shard(self, tar: tarfile.TarFile, shard: str) -> None:
        audio: dict[str, tuple[str, int, int]] = {}
        labels: dict[str, list[str]] = {}
        for member in tar:
            if not member.isreg():
                continue
            if not _is_text_utf8(member.name):
                raise UserError(f"{shard}: the member name {member.name!r} is not UTF-8")
            folder, _, base = member.name.removeprefix("./").rpartition("/")
            stem, _, suffix = base.partition(".")
            key = f"{folder}/{stem}" if folder else stem
            if suffix.lower() == "json":
                labels[key] = _json_labels(tar, member, shard)
            elif suffix.lower().rpartition(".")[2] in media.AUDIO_SUFFIXES:
                if key in audio:
                    raise UserError(f"{shard}: {member.name}: a second audio file of the key {key!r}")
                audio[key] = (member.name, member.offset_data, member.size)
        for key, (name, offset, size) in audio.items():
            if key not in labels:
                raise UserError(f"{media.tar_key(shard, name)}: no {key}.json beside it in the shard")
            self.ids.append(key)
            self.paths.append(media.tar_key(shard, name))
            self.labels.append(labels[key])
            self.offsets.append(offset)
            self.sizes.append(size)


def _is_text_utf8(text: str) -> bool:
    """Whether it holds no half of a surrogate pair, nor what stands for bytes that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _json_labels(tar: tarfile.TarFile, member: tarfile.TarInfo, shard: str) -> list[str]:
    where = media.tar_key(shard, member.name)
    file = tar.extractfile(member)
    assert file is not None, "a regular member has content"
    try:
        record = json.loads(file.read())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({error})") from None
    labels = record.get("labels", []) if isinstance(record, dict) else None
    if not isinstance(labels, list) or not all(isinstance(x, str) and _is_text_utf8(x) for x in labels):
        raise UserError(f"{where}: must be an object whose 'labels' is a list of strings")
    return labels

"""VIP-ANT index files: JSON lines -> one `Index` of columns, and the chosen lines and their weights back out.

The lines are kept byte for byte (unknown keys survive) and only five keys are read (`json_lines`). Here is what they
mean: which key names the audio, where it lies, and what no index may hold. Format: VIP-ANT's `src_*.csv`.
"""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from balance.data import json_lines
from balance.data.clip_ids import check_ids, refuse_duplicates
from balance.data.json_lines import Bytes
from balance.data.locate import NoSuchIndex, existing_indexes
from balance.data.media import relative_path
from balance.data.slices import cut
from balance.errors import UserError
from balance.records import Float64, Index, Labels, Strings
from balance.runtime.files import atomic, atomic_text, write_lines
from balance.runtime.remote import AnyPath

_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        # Of an index of over 50 M clips these exceed the 2 GiB that a string array can hold.
        ("dir", pa.large_string()),
        ("aclip", pa.list_(pa.large_string())),
        ("clip", pa.list_(pa.large_string())),
        ("labels", pa.list_(pa.large_string())),
    ]
)
_SLICES_SCHEMA = pa.schema([*_SCHEMA, ("bos", pa.string()), ("eos", pa.string())])
_SEGMENT_LINE = re.compile(rb'[\w-]{11}, *[\d.]+, *[\d.]+, *"')
_NOT_PLAIN = r"^/|//|(^|/)\.\.?(/|$)|[\x00-\x1f]"


def index_weights(labels: Labels) -> Float64:
    """The sampling weight of each clip, (n,) float64: the sum of 1000 / (count(label) + 1) over its labels.

    Counts are taken over these n clips; the sum goes in the record's order. Source: VIP-ANT's
    `src_unbalanced_train_segments_weight.csv`.
    """
    return label_sums(labels, (1000.0 / (labels.counts() + 1.0)).astype(np.float64))


def label_sums(labels: Labels, per_label: Float64) -> Float64:
    """The sum of a value per label (len(names),) over each clip's labels, added in the record's order: (n,) float64."""
    rows = np.repeat(np.arange(len(labels)), labels.sizes())
    # Without labels anywhere numpy's bincount gives integers.
    return np.bincount(rows, weights=per_label[labels.codes], minlength=len(labels)).astype(np.float64)


def write_index(path: Path, parts: Sequence[Index]) -> list[Path]:
    """A VIP-ANT index of these clips, their original lines, and beside it the weight file over this index."""
    with atomic(path) as file:
        for part in parts:
            assert part.lines is not None
            write_lines(file, part.lines)
    weights = index_weights(Labels.join([part.labels for part in parts]))
    return [path, write_weights(path.with_name(f"{path.stem}_weight.csv"), weights)]


def write_weights(path: Path, weights: Float64) -> Path:
    """A weight file: one float per line, in the order of the index."""
    with atomic_text(path) as file:
        file.writelines(f"{weight!r}\n" for weight in weights.tolist())
    return path


def read_index(path: AnyPath, media: AnyPath | None = None, *, slices: bool = False) -> Index:
    """A VIP-ANT index as columns, in the order of its lines. UserError names the file, the line and what is wrong.

    media: the media root, under which an absolute `dir` may lie (None: such a one is refused); slices: a record's `bos`
    and `eos` are seconds inside its file, which other records may share (`data.slices`). CRLF line ends and a
    missing last line end are tolerated: `Index.lines` holds the records without them.
    """
    data = _read_bytes(path)
    _refuse_other_files(path, data)
    table, lines = json_lines.parse(path, data, _SLICES_SCHEMA if slices else _SCHEMA)
    if not len(lines):
        raise UserError(f"{path}: empty index: no line in it")
    audio_key = _audio_key(path, table)
    ids, paths = _column(table, "id"), _paths(path, table, audio_key, media)
    if slices:
        bos, eos = _column(table, "bos").to_pylist(), _column(table, "eos").to_pylist()
        ids, paths = cut(ids.to_pylist(), paths.to_pylist(), bos, eos, lambda row: f"{path} line {row + 1}")
    index = Index(
        file=str(path),
        ids=ids,
        paths=paths,
        labels=labels_from_lists(_column(table, "labels")),
        lines=lines,
        audio_key=audio_key,
    )
    refuse_duplicates(str(path), index.ids)
    return index


def _read_bytes(path: AnyPath) -> Bytes:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            data = np.empty(size, dtype=np.uint8)
            got = file.readinto(data.data) if size else 0  # whole, without a second copy
    except FileNotFoundError:
        raise NoSuchIndex(f"{path}: no such index file. {existing_indexes(path.parent)}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read as an index: {error.strerror}") from None
    return data[:got]


def _refuse_other_files(path: AnyPath, data: Bytes) -> None:
    head = data[:4096].tobytes()
    first = head.splitlines()[0] if head else b""
    if head.startswith(codecs.BOM_UTF8):
        raise UserError(f"{path}: begins with a byte order mark; write it as plain UTF-8 (tail -c +4 FILE)")
    if first.startswith(b"#") or _SEGMENT_LINE.match(first):
        raise UserError(
            f"{path}: an official segment list, not an index. Make the index with python -m balance.index "
            f"index.segments={path} index.media=MEDIA index.out=FOLDER, or say dataset.format=segments"
        )


def _column(table: pa.Table, name: str) -> pa.Array:
    column = table.column(name)
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


def _first_line(mask: pa.Array) -> int:
    return int(pc.index(mask, True).as_py()) + 1


def _audio_key(path: AnyPath, table: pa.Table) -> str:
    """`aclip` or `clip`. The published loader decides by the first line, so an index must agree with itself."""
    _check_ids(path, _column(table, "id"))
    new, old = (pc.is_valid(_column(table, name)) for name in ("aclip", "clip"))
    neither = pc.invert(pc.or_(new, old))
    if pc.any(neither).as_py():
        raise UserError(f"{path} line {_first_line(neither)}: no 'aclip' (list of audio suffixes) in the record")
    if pc.all(new).as_py():
        return "aclip"
    if not pc.any(new).as_py():
        return "clip"
    raise UserError(
        f"{path}: line {_first_line(new)} has 'aclip', line {_first_line(pc.invert(new))} has 'clip': the published "
        "loader decides by the first line. Use one key in the whole index"
    )


def _check_ids(path: AnyPath, ids: Strings) -> None:
    absent = pc.is_null(ids)
    if pc.any(absent).as_py():
        raise UserError(f"{path} line {_first_line(absent)}: no 'id' in the record")
    check_ids(ids, lambda row: f"{path} line {row + 1}")


def _paths(path: AnyPath, table: pa.Table, audio_key: str, media: AnyPath | None) -> Strings:
    """`{dir}/{key}/{id}.{aclip[0]}`; the folder has the key's name; an empty dir goes with its slash. `./x` and the
    like are written plainly; a path outside the media root is refused."""
    suffixes = _column(table, audio_key)
    empty = pc.equal(pc.list_value_length(suffixes), 0)
    if pc.any(empty).as_py():
        raise UserError(f"{path} line {_first_line(empty)}: {audio_key!r} is an empty list: no audio file named")
    gold = pc.list_element(suffixes, 0)
    folder = pc.fill_null(_column(table, "dir"), "")
    empty, dot, slash, key = (pa.scalar(text, pa.large_string()) for text in ("", ".", "/", audio_key))
    chunk = pc.if_else(pc.equal(folder, ""), empty, pc.binary_join_element_wise(folder, empty, slash))
    name = pc.binary_join_element_wise(_column(table, "id").cast(pa.large_string()), gold, dot)
    paths = pc.binary_join_element_wise(chunk, key, slash, name, empty)
    odd = np.flatnonzero(pc.match_substring_regex(paths, _NOT_PLAIN).to_numpy(zero_copy_only=False))
    if not len(odd):
        return paths
    plain = [_plain_path(f"{path} line {row + 1}", paths[row].as_py(), media) for row in odd.tolist()]
    mask = np.zeros(len(paths), dtype=np.bool_)
    mask[odd] = True
    return pc.replace_with_mask(paths, pa.array(mask), pa.array(plain, type=pa.large_string()))


def _plain_path(where: str, given: str, media: AnyPath | None) -> str:
    if any(letter < " " for letter in given):
        raise UserError(f"{where}: {given!a} is no path: it has control characters in it")
    plain = relative_path(given, media)
    if plain is None:
        raise UserError(
            f"{where}: {given} is outside the media folder; name a 'dir' inside it, which may be a link to elsewhere"
        )
    return plain


def labels_from_lists(lists: pa.Array) -> Labels:
    """`Labels` of an Arrow list<string> array; no list means none; a label named twice in one clip counts once."""
    lists = pc.fill_null(lists, pa.scalar([], type=lists.type)) if lists.null_count else lists
    sizes = pc.list_value_length(lists).to_numpy().astype(np.int64)
    coded = pc.list_flatten(lists).dictionary_encode()
    seen = coded.dictionary.to_pylist()
    names = sorted(seen)
    rank = {name: i for i, name in enumerate(names)}
    codes = np.array([rank[name] for name in seen], dtype=np.int32)[coded.indices.to_numpy()]
    rows = np.repeat(np.arange(len(sizes), dtype=np.int64), sizes)
    _, first = np.unique(rows * max(len(names), 1) + codes, return_index=True)
    if len(first) < len(codes):
        first.sort()
        codes, sizes = codes[first], np.bincount(rows[first], minlength=len(sizes))
    return Labels(tuple(names), np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64), codes.astype(np.int32))

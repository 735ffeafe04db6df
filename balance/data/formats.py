"""`dataset.format`: how a split is described on disk -> `Index`, and the chosen clips -> an index of the same form.

What a name means and what is written for it:
vipant: JSON lines (`balance.data.vipant_index`); the run writes `src_augmented_k{K}.csv` itself.
ast_json: AST's `{"data": [{"wav", "labels"}]}` with `class_labels_indices.csv` -> `augmented_k{K}.json`.
parquet, webdataset: containers read in place (`containers`) -> `augmented_k{K}.parquet`, `.tar.csv`: references
to rows and members, since copying the audio would double the data. segments: an official list and media, matched in
memory -> `augmented_k{K}.segments.csv`. embeddings: the user's own vectors (`precomputed`).
"""

from __future__ import annotations

import csv
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from balance.data import media as media_files
from balance.data.config import ColumnsConfig, Format
from balance.data.containers import read_parquet, read_tar
from balance.data.media_scan import scan
from balance.data.precomputed import read_guard
from balance.data.segments import match, read_list, to_index, wanted, write_list
from balance.data.vipant_index import (
    NoSuchIndex,
    index_weights,
    indexes_there,
    label_sums,
    read_index,
    refuse_duplicates,
    resolve,
)
from balance.errors import UserError
from balance.records import Float64, Index, Int64, Labels
from balance.runtime.files import atomic, atomic_text

log = logging.getLogger(__name__)
LABEL_MAP = "class_labels_indices.csv"


def read_split(format: Format, value: str, *, root: Path, media: Path, columns: ColumnsConfig) -> Index:
    """One split as columns; paths are keys relative to `media` (`balance.data.media` opens them).

    value: `dataset.balanced` or its like. NoSuchIndex where there is none; UserError for everything wrong with it.
    Of `embeddings` this gives the ids alone (for the eval list); `vectors.read_vectors` gives the vectors.
    """
    label_map = root / LABEL_MAP
    readers = {
        Format.vipant: lambda: read_index(resolve(root, value)),
        Format.ast_json: lambda: read_ast_json(_one_file(root, value, ".json"), media=media, label_map=label_map),
        Format.parquet: lambda: read_parquet(
            media, value, id_column=columns.id, audio_column=columns.audio, labels_column=columns.labels
        ),
        Format.webdataset: lambda: read_tar(media, value),
        Format.segments: lambda: _read_segments(_one_file(root, value, ".csv"), media),
        Format.embeddings: lambda: read_guard(root, value),
    }
    return readers[format]()


def _one_file(root: Path, value: str, suffix: str) -> Path:
    path = Path(value) if "/" in value or value.endswith(suffix) else root / f"{value}{suffix}"
    if not path.is_file():
        raise NoSuchIndex(f"{path}: no such file. {indexes_there(path.parent, (suffix,))}")
    return path


def _read_segments(path: Path, media: Path) -> Index:
    segments = read_list(path)
    sought = wanted([segments])
    matched = match(segments, sought, scan(media, sought), require_frames=False)
    num_found, num_listed = len(matched.rows), len(segments)
    if num_found < num_listed:
        log.warning("%s: %d of the %d listed clips are there; the others are left out", path, num_found, num_listed)
    if not num_found:
        raise UserError(f"{path}: none of its {len(segments)} clips is under {media} (looked for {segments.ids[0]}.*)")
    return to_index(matched)


def read_label_map(path: Path) -> list[str]:
    """The label ids of a `class_labels_indices.csv` (`index,mid,display_name`), by index. UserError if it is none."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; ast_json needs AST's label map (index,mid,display_name)") from None
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise UserError(f"{path}: cannot be read as a label map: {error}") from None
    if not rows or not {"index", "mid"} <= set(rows[0]):
        raise UserError(f"{path}: not a label map: its first line must be index,mid,display_name")
    try:
        by_index = {int(row["index"]): row["mid"] for row in rows}
    except (TypeError, ValueError):
        raise UserError(f"{path}: the column index must hold whole numbers") from None
    if sorted(by_index) != list(range(len(rows))) or len(set(by_index.values())) < len(rows):
        raise UserError(f"{path}: indexes must be 0 … {len(rows) - 1}, each with another mid")
    return [by_index[i] for i in range(len(rows))]


def read_ast_json(path: Path, *, media: Path, label_map: Path) -> Index:
    """AST's data file. A clip's id is the name of its `wav` without folder and suffix (and without the
    `.p0` of VIP-ANT's gold files); `entries` are those of its list.

    `wav` is a path under the media root, absolute or relative to it; `labels` is joined by commas, each in the map.
    """
    known = set(read_label_map(label_map))
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    entries = content.get("data") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise UserError(f'{path}: must be {{"data": [{{"wav": …, "labels": …}}, …]}} with at least one clip')
    ids, paths, labels, originals = [], [], [], []
    prefix = os.path.abspath(media) + os.sep
    for number, entry in enumerate(entries):
        where = f"{path} data[{number}]"
        if not isinstance(entry, dict) or not isinstance(entry.get("wav"), str) or not entry["wav"]:
            raise UserError(f"{where}: no 'wav' (a path) in it")
        if not isinstance(entry.get("labels", ""), str):
            raise UserError(f"{where}: 'labels' must be one string, joined by commas")
        try:
            originals.append(json.dumps(entry, ensure_ascii=False).encode())
        except UnicodeEncodeError:
            raise UserError(f"{where}: half of a surrogate pair (\\ud800 and the like): not text") from None
        wav = os.path.normpath(entry["wav"])
        if os.path.isabs(wav):
            if not wav.startswith(prefix):
                folder = os.path.dirname(wav)
                raise UserError(f"{where}: {wav} is not under dataset.media={media}; say dataset.media={folder}")
            wav = wav[len(prefix) :]
        names = [name for name in entry.get("labels", "").split(",") if name]
        if not known.issuperset(names):
            unknown = next(name for name in names if name not in known)
            raise UserError(f"{where}: label {unknown!r} is not in {label_map.name}")
        ids.append((os.path.splitext(os.path.basename(wav))[0]).removesuffix(".p0"))
        paths.append(wav)
        labels.append(names)
    all_ids = pa.array(ids, type=pa.string())
    refuse_duplicates(str(path), all_ids)
    return Index(
        str(path),
        all_ids,
        pa.array(paths, type=pa.string()),
        Labels.of(labels),
        entries=pa.array(originals, type=pa.large_binary()),
    )


def ast_weights(labels: Labels) -> Float64:
    """AST's sampling weight of each clip, (n,) float64: the sum of 1000 / (count(label) + 0.01) over its labels.

    Source: `gen_weight_file.py` of the AST code.
    """
    return label_sums(labels, (1000.0 / (labels.counts() + 0.01)).astype(np.float64))


def write_index(format: Format, parts: Sequence[Index], run_dir: Path, k: int, *, columns: ColumnsConfig) -> list[Path]:
    """An index of the chosen clips in the format's own form, and their weights; returns the files written.

    parts: the chosen seeds, then the chosen neighbours, in the order of the run's other files. Not for vipant and
    embeddings, whose lines `src_augmented_k{K}.csv` holds.
    """
    chosen = _join(parts)
    stem = f"augmented_k{k}"
    weights = ast_weights(chosen.labels) if format is Format.ast_json else index_weights(chosen.labels)
    if format is Format.ast_json:
        written = run_dir / f"{stem}.json"
        _write_ast_json(written, _entries(parts))
    elif format is Format.parquet:
        written = run_dir / f"{stem}.parquet"
        _write_rows(written, chosen, columns)
    elif format is Format.webdataset:
        written = run_dir / f"{stem}.tar.csv"
        _write_members(written, chosen)
    elif format is Format.segments:
        written = run_dir / f"{stem}.segments.csv"
        write_list(written, _entries(parts), chosen.labels)
    else:
        raise ValueError(f"{format.value} has no index form of its own")
    weight_file = run_dir / f"{stem}_weight.csv"
    with atomic_text(weight_file) as file:
        file.writelines(f"{weight!r}\n" for weight in weights.tolist())
    return [written, weight_file]


def _join(parts: Sequence[Index]) -> Index:
    """The parts one after the other, over one vocabulary."""
    return Index(
        file=parts[0].file,
        ids=pa.concat_arrays([part.ids for part in parts]),
        paths=pa.concat_arrays([part.paths for part in parts]),
        labels=Labels.join([part.labels for part in parts]),
        offsets=None if parts[0].offsets is None else _concatenate([part.offsets for part in parts]),
        sizes=None if parts[0].sizes is None else _concatenate([part.sizes for part in parts]),
    )


def _concatenate(columns: Sequence[Int64 | None]) -> Int64:
    return np.concatenate([column for column in columns if column is not None])


def _entries(parts: Sequence[Index]) -> list[bytes]:
    """The original records of the parts, in their own form."""
    found: list[bytes] = []
    for part in parts:
        assert part.entries is not None, "its format keeps the original records"
        found += part.entries.to_pylist()
    return found


def _write_ast_json(path: Path, entries: Sequence[bytes]) -> None:
    with atomic_text(path) as file:
        file.write('{"data": [\n')
        file.write(",\n".join(entry.decode() for entry in entries))
        file.write("\n]}\n")


def _label_lists(labels: Labels) -> pa.Array:
    names = pa.array(labels.names, type=pa.string()).take(pa.array(labels.codes))
    return pa.ListArray.from_arrays(pa.array(labels.offsets, type=pa.int32()), names)


def _write_rows(path: Path, chosen: Index, columns: ColumnsConfig) -> None:
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
    with atomic(path) as temporary:
        pq.write_table(table, temporary)


def _write_members(path: Path, chosen: Index) -> None:
    """References: shard (relative to the media root), member, and the place of its bytes."""
    assert chosen.offsets is not None, "webdataset keeps the places of its members"
    assert chosen.sizes is not None, "webdataset keeps the places of its members"
    with atomic_text(path) as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(["id", "shard", "member", "offset", "size", "labels"])
        columns = (chosen.ids.to_pylist(), chosen.paths.to_pylist(), chosen.offsets.tolist(), chosen.sizes.tolist())
        for row, (id, key, offset, size) in enumerate(zip(*columns, strict=True)):
            shard = media_files.container("webdataset", key)
            out.writerow([id, shard, key[len(shard) + 2 :], offset, size, ";".join(chosen.labels[row])])

"""`dataset.format`: how a split is described on disk -> `Index`, and the chosen clips -> an index of the same form.

vipant: VIP-ANT's JSON lines (`vipant_index`) -> `src_augmented_k{K}.csv`. ast_json: AST's data file -> `.json`.
parquet, webdataset: containers read in place (`parquet_files`, `tar_shards`) -> `.parquet`, `.tar.csv`: references to
rows and members. segments: an official list, matched with the media in memory -> `.segments.csv`. embeddings: the
user's own vectors (`precomputed`) -> as vipant, where an index lies beside them. folder: files and nothing else
(`folder_files`) -> `.files.txt`. Beside each lies its weight file.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from balance.data import ast_json, folder_files, parquet_files, precomputed, tar_shards, vipant_index
from balance.data.config import ColumnsConfig, Format
from balance.data.label_map import LABEL_MAP
from balance.data.locate import index_file, one_file
from balance.data.media_scan import scan
from balance.data.segment_lists import read_list, write_list
from balance.data.segments import looked_for, match, to_index, wanted
from balance.data.vipant_index import index_weights, write_weights
from balance.errors import UserError
from balance.records import Index, Int64, Labels
from balance.runtime.remote import AnyPath

log = logging.getLogger(__name__)


def read_split(
    format: Format, value: str, *, root: AnyPath, media: AnyPath, columns: ColumnsConfig, slices: bool = False
) -> Index:
    """One split as columns; paths are keys relative to `media` (`balance.data.media` opens them).

    value: `dataset.balanced` or its like; slices: `dataset.slices`, of vipant and segments.
    NoSuchIndex where there is none; UserError for everything wrong with it.
    Of `embeddings` this gives the ids alone; `precomputed.read_vectors` gives the vectors.
    """
    label_map = root / LABEL_MAP
    readers = {
        Format.vipant: lambda: vipant_index.read_index(index_file(root, value), media, slices=slices),
        Format.ast_json: lambda: ast_json.read_ast_json(
            one_file(root, value, ".json"), media=media, label_map=label_map
        ),
        Format.parquet: lambda: parquet_files.read_parquet(media, value, columns),
        Format.webdataset: lambda: tar_shards.read_tar(media, value, columns.labels),
        Format.segments: lambda: _read_segments(one_file(root, value, ".csv"), media, slices),
        Format.embeddings: lambda: precomputed.read_ids(root, value),
        Format.folder: lambda: folder_files.read_folder(root, media, value, with_labels=columns.labels is not None),
    }
    index = readers[format]()
    if not len(index.labels.codes) and format is not Format.embeddings and columns.labels is not None:
        if format is Format.folder:  # often meant so, and it has no weights
            log.info("%s: no class folders in it: what needs labels is left out", index.file)
        else:
            log.warning("%s: no clip has labels: weights are 0, and what needs labels is left out", index.file)
    return index


def _read_segments(path: AnyPath, media: AnyPath, slices: bool) -> Index:
    segments = read_list(path, slices=slices)
    sought = wanted([segments])
    found = scan(media, sought, whole=slices)
    matched = match(segments, sought, found, require_frames=False)
    num_found, num_listed = len(matched.rows), len(segments)
    if not num_found:
        raise UserError(
            f"{path}: none of its {num_listed} clips is under {media}: {looked_for(segments, sought, found)}"
        )
    if num_found < num_listed:
        log.warning("%s: %d of the %d listed clips are there; the others are left out", path, num_found, num_listed)
    return to_index(matched, slices=slices)


def write_index(format: Format, parts: Sequence[Index], run_dir: Path, k: int, *, columns: ColumnsConfig) -> list[Path]:
    """The index to train on, in the format's own form, and its weights; returns the files written.

    parts: the chosen seeds, then the chosen neighbours, in the order of the run's other files. Nothing is written for
    the user's own vectors without an index beside them.
    """
    if format in (Format.vipant, Format.embeddings):
        if any(part.lines is None for part in parts):
            return []
        return vipant_index.write_index(run_dir / f"src_augmented_k{k}.csv", parts)
    chosen = _join(parts)
    stem = f"augmented_k{k}"
    weights = index_weights(chosen.labels)
    if format is Format.ast_json:
        written = run_dir / f"{stem}.json"
        ast_json.write_ast_json(written, _entries(parts))
        weights = ast_json.ast_weights(chosen.labels)
    elif format is Format.parquet:
        written = run_dir / f"{stem}.parquet"
        parquet_files.write_rows(written, chosen, columns)
    elif format is Format.webdataset:
        written = run_dir / f"{stem}.tar.csv"
        tar_shards.write_members(written, chosen)
    elif format is Format.segments:
        written = run_dir / f"{stem}.segments.csv"
        write_list(written, _entries(parts), chosen.labels)
    else:
        written = run_dir / f"{stem}.files.txt"
        folder_files.write_files(written, parts)
        if not len(chosen.labels.codes):
            return [written]  # weights follow labels
    return [written, write_weights(run_dir / f"{stem}_weight.csv", weights)]


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

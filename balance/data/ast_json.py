"""AST's data files in and out: `{"data": [{"wav", "labels"}]}` beside a label map `class_labels_indices.csv`.

In: such a file -> one `Index`, whose `entries` are the original objects. Out: those of the chosen clips, unchanged, so
that AST's own loader reads them. A clip's id is its file's name, since AST has none.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from balance.data.clip_ids import id_array, id_of_path, refuse_duplicates
from balance.data.containers import outside
from balance.data.label_map import read_label_map
from balance.data.media import relative_path
from balance.data.vipant_index import label_sums
from balance.errors import UserError
from balance.records import Float64, Index, Labels
from balance.runtime.files import atomic_text
from balance.runtime.remote import AnyPath
from balance.runtime.wording import listed

log = logging.getLogger(__name__)


def read_ast_json(path: AnyPath, *, media: AnyPath, label_map: AnyPath) -> Index:
    """AST's data file. A clip's id is the name of its `wav` without folder and suffix (and without the
    `.p0` of VIP-ANT's gold files); `entries` are those of its list.

    `wav` is a path under the media root, absolute or relative to it; `labels` is joined by commas, each in the map.
    """
    known = read_label_map(label_map).keys()
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    entries = content.get("data") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise UserError(f'{path}: must be {{"data": [{{"wav": …, "labels": …}}, …]}} with at least one clip')
    ids, paths, labels, originals = [], [], [], []
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
        wav = relative_path(entry["wav"], media)
        if wav is None:
            raise UserError(f"{where}: {outside(media, os.path.join(str(media), entry['wav']))}")
        names = [name for name in entry.get("labels", "").split(",") if name]
        if not known >= set(names):
            unknown = next(name for name in names if name not in known)
            raise UserError(f"{where}: label {unknown!r} is not in {label_map.name}")
        ids.append(id_of_path(os.path.splitext(os.path.basename(wav))[0]))
        paths.append(wav)
        labels.append(names)
    _say_where_labels_are_absent(path, entries)
    all_ids = id_array(ids, lambda row: f"{path} data[{row}]")
    refuse_duplicates(str(path), all_ids)
    return Index(
        str(path),
        all_ids,
        pa.array(paths, type=pa.string()),
        Labels.of(labels),
        entries=pa.array(originals, type=pa.large_binary()),
    )


def _say_where_labels_are_absent(path: AnyPath, entries: list[dict[str, Any]]) -> None:
    """UserError where no entry has `labels`; a warning where some have none."""
    num_absent = sum("labels" not in entry for entry in entries)
    if num_absent == len(entries):
        keys = dict.fromkeys(key for entry in entries for key in entry)
        raise UserError(
            f"{path}: no entry has 'labels'; they have {listed(list(keys), 12)}. AST reads 'wav' and 'labels'"
        )
    if num_absent:
        log.warning("%s: %d of the %d entries have no 'labels'", path, num_absent, len(entries))


def ast_weights(labels: Labels) -> Float64:
    """AST's sampling weight of each clip, (n,) float64: the sum of 1000 / (count(label) + 0.01) over its labels.

    Source: `gen_weight_file.py` of the AST code.
    """
    return label_sums(labels, (1000.0 / (labels.counts() + 0.01)).astype(np.float64))


def write_ast_json(path: Path, entries: Sequence[bytes]) -> None:
    """AST's data file of these entries."""
    with atomic_text(path) as file:
        file.write('{"data": [\n')
        file.write(",\n".join(entry.decode() for entry in entries))
        file.write("\n]}\n")

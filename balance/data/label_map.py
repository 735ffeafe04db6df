"""`class_labels_indices.csv`, as AudioSet and AST have it: the labels in the order of their indices, and their names.

In: lines `index,mid,display_name`. Out: label id -> name. The order is that of AST's classes and of training; the names
serve messages and pages where there is no ontology.
"""

from __future__ import annotations

import csv
import io
import logging

from balance.errors import UserError
from balance.runtime.remote import AnyPath

log = logging.getLogger(__name__)

LABEL_MAP = "class_labels_indices.csv"


def read_label_map(path: AnyPath) -> dict[str, str]:
    """Label id -> display name (the id where there is none), in the order of the indices. UserError if it is no map."""
    try:
        with io.TextIOWrapper(path.open("rb"), encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; ast_json needs AST's label map (index,mid,display_name)") from None
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise UserError(f"{path}: cannot be read as a label map: {error}") from None
    if not rows or not {"index", "mid"} <= set(rows[0]):
        raise UserError(f"{path}: not a label map: its first line must be index,mid,display_name")
    try:
        by_index = {int(row["index"]): (row["mid"], row.get("display_name") or row["mid"]) for row in rows}
    except (TypeError, ValueError):
        raise UserError(f"{path}: the column index must hold whole numbers") from None
    labels = dict(by_index[i] for i in sorted(by_index))
    if sorted(by_index) != list(range(len(rows))) or len(labels) < len(rows) or not all(labels):
        raise UserError(f"{path}: indexes must be 0 … {len(rows) - 1}, each with another mid")
    return labels


def read_label_names(root: AnyPath) -> tuple[dict[str, str], AnyPath | None]:
    """(label id -> name, the file), of the map under the root; nothing where there is none, or none that can be read:
    only names depend on it here."""
    path = root / LABEL_MAP
    if not path.is_file():
        return {}, None
    try:
        return read_label_map(path), path
    except UserError as error:
        log.warning("labels go by their ids: %s", error)
        return {}, None

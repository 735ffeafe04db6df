"""The lists of an audit: what was typed -> columns, and where their sound lies.

In: the settings, whose `dataset.*` says where a list lies unless its entry says otherwise. Out: `Listed`, one per list.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from balance.config import AuditSettings
from balance.data import formats
from balance.data.config import Format, MediaSource
from balance.data.stamps import file_stamps
from balance.errors import UserError
from balance.records import Bool, Index, Int64
from balance.runtime import files


@dataclass(frozen=True, slots=True, eq=False)
class Listed:
    """One list. side: `training` or `evaluation`; name: as typed; stamps: (n, 2) of the media files, −1 where there is
    none."""

    side: str
    name: str
    index: Index
    media: MediaSource
    stamps: Int64

    @property
    def missing(self) -> Bool:
        """(n,) whether a clip has no file."""
        return np.asarray(self.stamps[:, 0] < 0)

    def without(self, rows: Int64) -> Listed:
        """With these rows as if they had no file."""
        stamps = self.stamps.copy()
        stamps[rows] = -1
        return replace(self, stamps=stamps)

    def file_sha256(self) -> str | None:
        """Of the list's file; None where it is not one file."""
        path = Path(self.index.file)
        return files.sha256_file(path) if path.is_file() else None

    def ids_sha256(self) -> str:
        """Of the sorted ids, one per line."""
        return hashlib.sha256("\n".join(sorted(self.index.ids.to_pylist())).encode("utf-8")).hexdigest()


def read_lists(settings: AuditSettings) -> tuple[list[Listed], list[Listed]]:
    """(training lists, evaluation lists). UserError for what cannot be read, and where there is nothing to compare."""
    dataset, audit = settings.dataset, settings.audit
    train = audit.train or list(dict.fromkeys([dataset.balanced, dataset.unbalanced]))
    eval = audit.eval or ([] if dataset.eval is None else [dataset.eval])
    if not eval:
        raise UserError("an audit compares with evaluation clips: type dataset.eval=LIST, or audit.eval=[LIST,…]")
    return tuple(  # type: ignore[return-value]
        [_read(settings, side, entry) for entry in entries]
        for side, entries in (("training", train), ("evaluation", eval))
    )


def _read(settings: AuditSettings, side: str, entry: str | dict[str, Any]) -> Listed:
    placed = settings
    if isinstance(entry, dict):
        changes: dict[str, Any] = {name: value for name, value in entry.items() if name != "list"}
        if "root" in changes:
            changes.setdefault("media", changes["root"])
        if "format" in changes:
            changes["format"] = _format(changes["format"])
        placed = replace(settings, dataset=replace(settings.dataset, **changes))
    value = entry if isinstance(entry, str) else entry["list"]
    index = formats.read_split(
        placed.dataset.format,
        value,
        root=placed.root,
        media=placed.media_root,
        columns=placed.dataset.columns,
        slices=placed.dataset.slices,
    )
    if not len(index):
        raise UserError(f"{index.file}: lists no clip")
    return Listed(side, value, index, placed.media, _stamps(placed.media, index))


def _format(value: str) -> Format:
    try:
        return Format(value)
    except ValueError:
        allowed = ", ".join(member.value for member in Format)
        raise UserError(f"format: {value} is none of a list's formats: {allowed}") from None


def _stamps(media: MediaSource, index: Index) -> Int64:
    """Vectors without an index have no paths: their clips have no sound."""
    stamps = file_stamps(media.root, media.format.value, index.paths)
    stamps[np.asarray([path == "" for path in index.paths.to_pylist()])] = -1
    return stamps

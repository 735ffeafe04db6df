"""Which listed files are missing on disk, and when that is too many, the words for it.

In: keys of clips and the media root. Out: a mask, or the UserError that says what to type. Asked before any work, for
clips that have no embedding yet. Each folder is listed once and no file is looked at, since two million stats on a
network disk take an hour; the price is that a name counts as a file.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from balance.data import media
from balance.errors import UserError
from balance.records import Bool, Index, Int64

_NAMES_SHOWN = 5


def find_missing(media_root: Path, format: str, paths: Any) -> Bool:
    """Which of these keys (Arrow strings, (n,)) have no file under the media root; (n,) bool. One scan per folder.

    format: the value of `dataset.format`. A link to nowhere counts as missing; a member of a container is present if
    its container is.
    """
    names = [media.container(format, path) for path in paths.to_pylist()]
    present: dict[str, set[str]] = {}
    missing = np.zeros(len(names), dtype=bool)
    for row, name in enumerate(names):
        folder, _, file = name.rpartition("/")
        if folder not in present:
            present[folder] = _files_in(media_root / folder)
        missing[row] = file not in present[folder]
    return missing


def _files_in(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {e.name for e in entries if not e.is_symlink() or os.path.exists(e.path)}
    except (FileNotFoundError, NotADirectoryError):
        return set()


def refuse_missing(
    split: str,
    index: Index,
    missing: Int64,
    *,
    max_missing: float,
    media_root: Path,
    names: Mapping[str, str],
) -> None:
    """UserError if more than `max_missing` (a share, 0 to 1) of a split's listed files are missing.

    missing: (m,) rows of the index; names: label id -> name, for the message.
    """
    share = len(missing) / len(index)
    if share <= max_missing:
        return
    if len(missing) == len(index):
        raise UserError(
            f"none of the {len(index):,} files that {index.file} lists is under {media_root} (the first: "
            f"{index.paths[0].as_py()}). Type dataset.media=<the folder with the audio>"
        )
    ids = index.ids.take(missing[:_NAMES_SHOWN]).to_pylist()
    raise UserError(
        f"{len(missing):,} of the {len(index):,} {split} files of {index.file} are missing ({share:.1%}; ids "
        f"{', '.join(ids)}{' …' if len(missing) > len(ids) else ''}); labels that lost most: "
        f"{label_losses(index, missing, names)}.\nIf that is to be so, type max_missing={round_up(share)}"
    )


def label_losses(index: Index, missing: Int64, names: Mapping[str, str]) -> str:
    """The five labels that lose the largest share of their clips, the largest first: `Whistle 12 of 80 (15%)`.

    missing: (m,) rows of the index; names: label id -> name.
    """
    lost = index.labels.take(missing).counts()
    total = index.labels.counts()
    order = sorted(np.flatnonzero(lost), key=lambda c: (-lost[c] / total[c], -lost[c], index.labels.names[c]))
    shown = [
        f"{names.get(index.labels.names[c], index.labels.names[c])} {lost[c]} of {total[c]} ({lost[c] / total[c]:.0%})"
        for c in order[:_NAMES_SHOWN]
    ]
    return ", ".join(shown) or "none (no labels)"


def round_up(share: float) -> float:
    """A share rounded up to two digits after the point, so that it can be typed as a limit."""
    return min(1.0, math.ceil(share * 100) / 100)

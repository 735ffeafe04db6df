"""What is there and what could be decoded, before and after the work; and when that is too little, the words for it."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from balance.data import media
from balance.errors import UserError
from balance.records import Bool, DecodeFailure, Index, Int64

_NAMES_SHOWN = 5


def find_missing(media_root: Path, format: str, paths: Any) -> Bool:
    """Which of these keys (Arrow strings) have no file under the media root; (n,) bool. One scan a folder, no stat.

    A link to nowhere counts as missing. Members of containers are there if their container is.
    """
    names = [media.container(format, path) for path in paths.to_pylist()]
    there: dict[str, set[str]] = {}
    missing = np.zeros(len(names), dtype=bool)
    for row, name in enumerate(names):
        folder, _, file = name.rpartition("/")
        if folder not in there:
            there[folder] = _files_in(media_root / folder)
        missing[row] = file not in there[folder]
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
    """UserError if more than `max_missing` of a split's listed files are absent. missing: rows of the index."""
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
    """The labels whose clips are missing most, as `Whistle 12 of 80 (15 %)`, worst share first."""
    lost = index.labels.take(missing).counts()
    total = index.labels.counts()
    order = sorted(np.flatnonzero(lost), key=lambda c: (-lost[c] / total[c], -lost[c], index.labels.names[c]))
    shown = [
        f"{names.get(index.labels.names[c], index.labels.names[c])} {lost[c]} of {total[c]} ({lost[c] / total[c]:.0%})"
        for c in order[:_NAMES_SHOWN]
    ]
    return ", ".join(shown) or "none (no labels)"


def refuse_failures(split: str, failures: Sequence[DecodeFailure], num_present: int, *, max_failures: float) -> None:
    """UserError if more than `max_failures` of a split's present clips could not be read, or none at all could."""
    if not failures:
        return
    share = len(failures) / num_present
    none_left = len(failures) == num_present and split != "eval"  # eval clips serve the guard by their ids alone
    if share <= max_failures and not none_left:
        return
    reasons = Counter(f.reason for f in failures)
    counts = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    first = ", ".join(f"{f.path} ({f.detail})" for f in failures[:3])
    suffix, count = Counter(os.path.splitext(f.path)[1].lower() for f in failures).most_common(1)[0]
    if suffix.lstrip(".") in media.OTHER_AUDIO_SUFFIXES and count > len(failures) / 2:
        remedy = f"libsndfile cannot read {suffix} files: convert them, for instance: ffmpeg -i clip{suffix} clip.flac"
    elif len(failures) == num_present:
        remedy = "None could be read: look at the files, or at dataset.media"
    else:
        remedy = f"What is embedded stays. If that is to be so, type max_failures={round_up(share)}"
    raise UserError(
        f"{len(failures):,} of the {num_present:,} {split} clips could not be read ({share:.1%}): {counts}; "
        f"first: {first}.\n{remedy}"
    )


def round_up(share: float) -> float:
    """A share rounded up to two digits after the point, so that it can be typed as a limit."""
    return min(1.0, math.ceil(share * 100) / 100)

"""When too many listed files are missing on disk: the share that stops a run, and the words for it.

In: the rows of an index whose files are missing. Out: nothing, or the UserError that names the clips, the labels that
lose most and what to type: 15 % missing is normal for AudioSet, but must be a decision.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from balance.errors import UserError
from balance.records import Index, Int64
from balance.runtime.remote import AnyPath

_NAMES_SHOWN = 5


def refuse_missing(
    split: str,
    index: Index,
    missing: Int64,
    *,
    max_missing: float,
    media_root: AnyPath,
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

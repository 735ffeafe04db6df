"""`dataset.slices`: clips that are stretches of longer files, and when two such clips are copies.

In: a list's ids, paths and times. Out: the clips' own ids (`{id}_{bos}`, as AudioSet writes them) and keys
(`path#t=bos,eos`, what `data.media` opens), and which clips of two lists share sound. Two stretches do where they are
of one file (by its path, or by the id before the time) and overlap at all; a clip that is a whole file overlaps every
stretch of it. The price: a Python step for each clip whose file is in both lists.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from balance.data import media
from balance.data.clip_ids import comparable
from balance.data.config import Ids
from balance.errors import UserError
from balance.records import Index, Int64, Strings

_SECONDS = re.compile(r"\d+(\.\d+)?")


def cut(
    ids: Sequence[str],
    paths: Sequence[str],
    bos: Sequence[str | None],
    eos: Sequence[str | None],
    where: Callable[[int], str],
) -> tuple[Strings, Strings]:
    """(ids, keys) of clips that are seconds `bos` … `eos` of the files at `paths`, Arrow strings (n,).

    where: row -> file and line, for messages. UserError for times that are none, or no stretch.
    """
    for row, times in enumerate(zip(bos, eos, strict=True)):
        if not all(text and _SECONDS.fullmatch(text) for text in times) or float(times[0] or 0) >= float(times[1] or 0):
            said = " and ".join(f"{name} {text!r}" for name, text in zip(("bos", "eos"), times, strict=True))
            raise UserError(f"{where(row)}: {said}: dataset.slices=true needs two times in seconds, the second later")
    return (
        pa.array([f"{id}_{start}" for id, start in zip(ids, bos, strict=True)], pa.string()),
        pa.array([media.stretch_key(*key) for key in zip(paths, bos, eos, strict=True)], pa.large_string()),
    )


def same_sound(clips: Index, others: Index, ids_as: Ids | None) -> Int64:
    """(n,) int64 of each clip the first row of `others` that is the same clip, or a stretch that overlaps it; −1.

    ids_as: how ids are compared, None for letter by letter.
    """
    if not _is_cut(clips) and not _is_cut(others):
        found = pc.index_in(_comparable(clips.ids, ids_as), value_set=_comparable(others.ids, ids_as))
        return np.asarray(found.fill_null(-1).to_numpy(zero_copy_only=False), dtype=np.int64)
    rows = np.full(len(clips), -1, dtype=np.int64)
    for mine, theirs in zip(_names(clips, ids_as), _names(others, ids_as), strict=True):
        is_shared = pc.is_in(mine, value_set=theirs).to_numpy(zero_copy_only=False).astype(bool)
        listed = pc.is_in(theirs, value_set=mine.filter(pa.array(is_shared))).to_numpy(zero_copy_only=False)
        stretches: dict[str, list[tuple[int, float, float]]] = defaultdict(list)
        for row, name, stretch in _stretches(others, theirs, np.flatnonzero(listed)):
            stretches[name].append((row, *stretch))
        for row, name, (start, stop) in _stretches(clips, mine, np.flatnonzero(is_shared)):
            shared = (other for other, bos, eos in stretches[name] if bos < stop and start < eos)
            first = next(shared, -1)
            if first >= 0 and not 0 <= rows[row] <= first:
                rows[row] = first
    return rows


def _comparable(ids: Strings, ids_as: Ids | None) -> Strings:
    return ids if ids_as is None else comparable(ids, ids_as)


def _is_cut(index: Index) -> bool:
    return bool(pc.any(pc.match_substring_regex(index.paths, media.STRETCH)).as_py())


def _names(index: Index, ids_as: Ids | None) -> tuple[Strings, Strings]:
    """What tells the file of each clip: its path, and the id before the time."""
    files = pc.replace_substring_regex(index.paths.cast(pa.large_string()), media.STRETCH, "")
    is_cut = pc.match_substring_regex(index.paths, media.STRETCH)
    ids = pc.if_else(is_cut, pc.replace_substring_regex(index.ids, r"_[0-9.]+$", ""), index.ids)
    return files, _comparable(ids, ids_as)


def _stretches(index: Index, names: Strings, rows: Int64) -> Iterator[tuple[int, str, tuple[float, float]]]:
    """(row, name of the file, its stretch in seconds) of these rows."""
    for row in rows.tolist():
        yield row, names[row].as_py(), media.stretch_s(index.paths[row].as_py()) or (0.0, np.inf)

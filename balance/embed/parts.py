"""The plan: all clips to embed, cut into parts, each the work of one process and one file of the store.

In: of each split its index and the rows that need an embedding. Out: a `Plan`, columns that cross to other processes.
A part is named after its clips, so two jobs that plan the same clips agree on who makes what. Parts are cut at fixed
rows of the whole index, not of what is left of it: a job that starts later, with less left, plans the same parts for
it. The price: the last parts of a split, and those of an index that has changed little, may be small.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from balance.audio.decoder_process import Job
from balance.records import Index, Int64

PART_CLIPS = {"cuda": 4096, "cpu": 512}  # under a minute of work on either; 2 M clips are 489 files on a GPU


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """All clips to embed, cut into parts: part i is rows bounds[i] … bounds[i + 1], to be stored as names[i]."""

    ids: Any
    paths: Any
    offsets: Int64
    sizes: Int64
    splits: tuple[str, ...]  # of each part
    names: tuple[str, ...]
    bounds: Int64

    def jobs(self, part: int) -> list[Job]:
        at = slice(int(self.bounds[part]), int(self.bounds[part + 1]))
        columns = (self.ids[at].to_pylist(), self.paths[at].to_pylist(), self.offsets[at], self.sizes[at])
        return [Job(i, p, int(o), int(s)) for i, p, o, s in zip(*columns, strict=True)]

    def __len__(self) -> int:
        return int(self.bounds[-1])


def plan_parts(
    todo: Sequence[tuple[str, Index, Int64]], part_clips: int, attempts: Callable[[str], str] | None = None
) -> Plan:
    """Cut what is to be embedded into parts: (split, its whole index, the ascending rows that need an embedding).

    attempts: of clips that are decoded again, `Store.attempts`; else their part would be taken for done. A path that
    occurs in two splits is planned once.
    """
    columns: list[tuple[Any, Any, Int64, Int64]] = []
    names: list[str] = []
    splits: list[str] = []
    bounds = [0]
    planned = pa.array([], pa.string())
    for split, index, rows in todo:
        paths = index.paths.take(pa.array(rows))
        fresh = ~np.asarray(pc.is_in(paths, value_set=planned).to_numpy(zero_copy_only=False), dtype=bool)
        rows, paths = rows[fresh], paths.filter(pa.array(fresh))
        first = np.asarray(pc.index_in(paths, value_set=pc.unique(paths)).to_numpy(zero_copy_only=False))
        if len(first) and len(np.unique(first)) < len(first):  # one file listed twice under two ids
            keep = np.sort(np.unique(first, return_index=True)[1])
            rows, paths = rows[keep], paths.take(pa.array(keep))
        planned = pa.concat_arrays([planned, paths])
        offsets, sizes = index.places()
        columns.append((index.ids.take(pa.array(rows)), paths, offsets[rows], sizes[rows]))
        cuts = np.flatnonzero(np.diff(rows // part_clips)) + 1
        for a, b in zip([0, *cuts], [*cuts, len(rows)], strict=True):
            if b > a:
                clips = paths[int(a) : int(b)].to_pylist()
                earlier = [attempts(path) for path in clips] if attempts else []
                names.append(plan_name(clips, [x for x in earlier if x]))
                splits.append(split)
                bounds.append(bounds[-1] + int(b - a))
    empty = pa.array([], pa.string())
    return Plan(
        ids=pa.concat_arrays([empty] + [c[0] for c in columns]),
        paths=pa.concat_arrays([empty] + [c[1] for c in columns]),
        offsets=np.concatenate([np.empty(0, np.int64)] + [c[2] for c in columns]),
        sizes=np.concatenate([np.empty(0, np.int64)] + [c[3] for c in columns]),
        splits=tuple(splits),
        names=tuple(names),
        bounds=np.array(bounds, dtype=np.int64),
    )


def plan_name(paths: Sequence[str], attempts: Sequence[str] = ()) -> str:
    """The name of the part that is made for these clips. attempts: of each clip, the parts where it failed before."""
    digest = hashlib.sha256()
    for text in (*paths, *attempts):
        digest.update(text.encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()[:16]

"""The plan: all clips to embed, cut into parts, each the work of one process and one file of the store.

In: of each split its index and the rows that need an embedding (`ToEmbed`). Out: a `Plan`, columns that cross to other
processes. A part is named after its clips, so two jobs that plan the same clips agree on who makes what. Parts are cut
at fixed rows of the whole index, not of what is left of it: a job that starts later, with less left, plans the same
parts for it. The price: the last parts of a split, and those of an index that has changed little, may be small.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from balance.audio.decoder_process import Job
from balance.records import Index, Int64, Strings, join_strings

PART_CLIPS = {"cuda": 4096, "cpu": 512}  # under a minute of work on either; 2 M clips are 489 files on a GPU


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """All clips to embed, cut into parts: part i is rows bounds[i] … bounds[i + 1], to be stored as names[i]."""

    ids: Any
    paths: Any
    offsets: Int64
    sizes: Int64
    stamps: Int64  # (n, 2), of the media files when they were listed
    splits: tuple[str, ...]  # of each part
    names: tuple[str, ...]
    bounds: Int64

    def part(self, number: int) -> PlannedPart:
        at = slice(int(self.bounds[number]), int(self.bounds[number + 1]))
        sizes = np.where(self.offsets[at] < 0, self.stamps[at, 0], self.sizes[at])
        # Joined with nothing they are copies: a slice would take the whole plan with it to another process.
        ids, paths = (pa.concat_arrays([column[at], column[:0]]) for column in (self.ids, self.paths))
        return PlannedPart(self.names[number], ids, paths, self.offsets[at], sizes, self.stamps[at])

    def __len__(self) -> int:
        return int(self.bounds[-1])


@dataclass(frozen=True, slots=True, eq=False)
class PlannedPart:
    """One part of a plan, n clips: all that its maker needs to know, in Arrow and numpy columns: strings of Python's
    would cost a driver that hands out parts seven times as much.

    offsets, sizes: (n,) as in `Job`; stamps: (n, 2) of the media files.
    """

    name: str
    ids: Strings
    paths: Strings
    offsets: Int64
    sizes: Int64
    stamps: Int64

    def __len__(self) -> int:
        return len(self.ids)

    def jobs(self) -> Iterator[Job]:
        """The clips in their order."""
        for id, path, offset, size in zip(
            *(column.tolist() for column in (self.ids, self.paths, self.offsets, self.sizes)), strict=True
        ):
            yield Job(id, path, offset, size)


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """The parts of a plan as an engine's tasks: each is made when it is asked for."""

    plan: Plan

    def __len__(self) -> int:
        return len(self.plan.names)

    def __getitem__(self, number: int, /) -> PlannedPart:
        return self.plan.part(number)


@dataclass(frozen=True, slots=True, eq=False)
class ToEmbed:
    """The clips of one split that need an embedding.

    rows: (m,) ascending rows of the index; stamps: (len(index), 2) of all its media files, None where unknown.
    """

    split: str
    index: Index
    rows: Int64
    stamps: Int64 | None = None


def plan_parts(todo: Sequence[ToEmbed], part_clips: int, earlier: Mapping[str, str] = MappingProxyType({})) -> Plan:
    """Cut what is to be embedded into parts of at most `part_clips` clips.

    earlier: of clips that are embedded again, path -> the parts that know them; else their part would be taken for
    done. A path that occurs twice is planned once.
    """
    splits: list[str] = []
    names: list[str] = []
    bounds = [0]
    columns: list[tuple[Any, ...]] = []
    planned = join_strings([])
    for one in todo:
        rows = one.rows[_first_times(one.index.paths.take(pa.array(one.rows)), planned)]
        ids, paths = (column.take(pa.array(rows)) for column in (one.index.ids, one.index.paths))
        planned = join_strings([planned, paths])
        offsets, sizes = one.index.places()
        stamps = np.full((len(one.index), 2), -1, dtype=np.int64) if one.stamps is None else one.stamps
        columns.append((ids, paths, offsets[rows], sizes[rows], stamps[rows]))
        cuts = np.flatnonzero(np.diff(rows // part_clips)) + 1
        for a, b in itertools.pairwise([0, *cuts.tolist(), len(rows)]):
            if b > a:
                clips = paths[a:b].to_pylist()
                names.append(plan_name(clips, [earlier[path] for path in clips if path in earlier]))
                splits.append(one.split)
                bounds.append(bounds[-1] + b - a)
    none = (join_strings([]),) * 2 + (np.empty(0, np.int64),) * 2 + (np.empty((0, 2), np.int64),)
    joined = list(zip(none, *columns, strict=True))
    return Plan(
        ids=join_strings(joined[0]),
        paths=join_strings(joined[1]),
        offsets=np.concatenate(joined[2]),
        sizes=np.concatenate(joined[3]),
        stamps=np.concatenate(joined[4]),
        splits=tuple(splits),
        names=tuple(names),
        bounds=np.array(bounds, dtype=np.int64),
    )


def _first_times(paths: Any, planned: Any) -> Int64:
    """The places of the paths that are not planned yet, each the first time that it occurs."""
    distinct = pc.unique(paths)
    first = np.unique(pc.index_in(paths, value_set=distinct).to_numpy(zero_copy_only=False), return_index=True)[1]
    known = pc.is_in(distinct.cast(planned.type), value_set=planned).to_numpy(zero_copy_only=False).astype(bool)
    return np.sort(first[~known]).astype(np.int64)


def plan_name(paths: Sequence[str], attempts: Sequence[str] = ()) -> str:
    """The name of the part that is made for these clips. attempts: the parts that know some of them already."""
    digest = hashlib.sha256()
    for text in (*paths, *attempts):
        digest.update(text.encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()[:16]

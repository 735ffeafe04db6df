"""Lists of segments -> VIP-ANT indexes, given what a media walk found.

The index keeps the list's order, skips ids without a gold clip (and without a frame, where frames are required) and
names only the gold files, suffixes sorted: what the published preparation makes. An index is text, so a clip in a
folder whose name is not UTF-8 is refused by name.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from balance.data.media_names import Wanted, likely_id
from balance.data.media_scan import Found
from balance.data.segment_lists import SegmentList
from balance.data.slices import cut
from balance.errors import UserError
from balance.records import Index, Int64


def wanted(lists: Sequence[SegmentList], aliases: Mapping[str, str] | None = None) -> Wanted:
    """The ids of all lists, numbered; an id in two lists is one clip (the first list's start counts).

    aliases: another name of a clip's flat file -> its id.
    """
    number: dict[str, int] = {}
    start_s: list[float] = []
    end_s: list[float] = []
    for rows in lists:
        for id, bos, eos in zip(rows.ids, rows.bos, rows.eos, strict=True):
            if number.setdefault(id, len(start_s)) == len(start_s):
                start_s.append(float(bos or "nan"))
                end_s.append(float(eos or "nan"))
    return Wanted(number, start_s, end_s, {alias: number[id] for alias, id in (aliases or {}).items()})


@dataclass(frozen=True, slots=True, eq=False)
class Matched:
    """Which rows of a list have media.

    rows: (n,) int64, ascending; numbers: (n,) int64, those rows' numbers in `Wanted` and `Found`.
    """

    segments: SegmentList
    found: Found
    rows: Int64
    numbers: Int64

    def lost(self) -> Int64:
        """The rows of the list that have no media, (m,) int64."""
        present = np.zeros(len(self.segments), dtype=np.bool_)
        present[self.rows] = True
        return np.flatnonzero(~present).astype(np.int64)


def match(segments: SegmentList, sought: Wanted, found: Found, *, require_frames: bool) -> Matched:
    """The listed clips that have media (and a frame, where frames are required), in the list's order."""
    numbers = np.fromiter((sought.number[id] for id in segments.ids), dtype=np.int64, count=len(segments))
    present = found.folder >= 0
    if require_frames:
        present &= np.diff(found.frames.offsets) > 0
    elif found.flat:
        present[np.fromiter(found.flat, dtype=np.int64, count=len(found.flat))] = True
    rows = np.flatnonzero(present[numbers]).astype(np.int64)
    return Matched(segments, found, rows, numbers[rows])


def lines(matched: Matched, folders: Sequence[str] | None = None) -> Iterator[str]:
    """The VIP-ANT record of each present clip, as a line of JSON with its line end.

    folders: the `dir` of each clip, where links to the media are indexed instead of the media; flat clips need it.
    """
    segments, found = matched.segments, matched.found
    as_json = functools.lru_cache(maxsize=1 << 18)(functools.partial(json.dumps, ensure_ascii=False))
    audio: tuple[str, ...]
    for i, (row, number) in enumerate(zip(matched.rows.tolist(), matched.numbers.tolist(), strict=True)):
        if found.folder[number] < 0:
            folder, audio = "", (f"p0.{found.flat[number].rpartition('.')[2]}",)
        else:
            folder, audio = found.folders[found.folder[number]], found.audio[number]
        folder = text(folder) if folders is None else folders[i]
        labels = tuple(segments.labels[row].split(",")) if segments.labels[row] else ()
        times = f'"bos": "{segments.bos[row]}", "eos": "{segments.eos[row]}", ' if segments.bos[row] else ""
        yield (
            f'{{"id": {json.dumps(segments.ids[row], ensure_ascii=False)}, "dir": {as_json(folder)}, '
            f'"{found.key}": {as_json(audio)}, "frame": {as_json(found.frames[number])}, '
            f'{times}"labels": {as_json(labels)}}}\n'
        )


def to_index(matched: Matched, *, slices: bool = False) -> Index:
    """The present clips as an index without an index file; `entries` are the lines of the official list. slices: the
    clips are stretches of their files."""
    segments, rows = matched.segments, matched.rows.tolist()
    ids, paths = pa.array([segments.ids[row] for row in rows], type=pa.string()), _paths(matched)
    if slices:
        bos, eos = ([times[row] for row in rows] for times in (segments.bos, segments.eos))
        ids, paths = cut(
            ids.to_pylist(), paths.to_pylist(), bos, eos, lambda i: f"{segments.file}: {segments.line(rows[i])}"
        )
    return Index(
        file=segments.file,
        ids=ids,
        paths=paths,
        labels=segments.label_sets().take(matched.rows),
        entries=pa.array([segments.line(row).encode() for row in rows], type=pa.large_binary()),
    )


def _paths(matched: Matched) -> Any:
    paths = list(gold_paths(matched))
    try:
        return pa.array(paths, type=pa.string())
    except UnicodeEncodeError:
        return pa.array([text(path) for path in paths], type=pa.string())


def gold_paths(matched: Matched) -> Iterator[str]:
    """The path of each clip's gold file relative to the media root."""
    segments, found = matched.segments, matched.found
    for row, number in zip(matched.rows.tolist(), matched.numbers.tolist(), strict=True):
        if found.folder[number] < 0:
            yield found.flat[number]
            continue
        folder = found.folders[found.folder[number]]
        tail = f"{found.key}/{segments.ids[row]}.{found.audio.first(number)}"
        yield f"{folder}/{tail}" if folder else tail


def text(path: str) -> str:
    """The same path; UserError where it is not UTF-8 and so cannot stand in an index."""
    try:
        path.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode("utf-8", "backslashreplace")
        raise UserError(
            f"{shown}: not UTF-8, so it cannot stand in an index: rename it (convmv -r -f latin1 -t utf8 --notest "
            "FOLDER), or make an index of links (python -m balance.index … index.link=true)"
        ) from None
    return path


def looked_for(segments: SegmentList, sought: Wanted, found: Found) -> str:
    """What to tell where no listed clip was found: what was looked for, and what the media folder holds."""
    id = segments.ids[0]
    names = f"{{dir}}/aclip/{id}.p0.mp3, {id}.wav, Y{id}.wav, {id}_30.flac and the like"
    holds = ", ".join(_other(path, sought) for path in found.others) or "no audio file"
    return f"looked for {names}. It holds {holds}"


def _other(path: str, sought: Wanted) -> str:
    """`folder/name_5.wav (id name)`"""
    id = likely_id(path.rpartition("/")[2].rpartition(".")[0])
    why = ", listed with other times" if id in sought.number else ""
    return os.fsencode(f"{path} (id {id}{why})").decode("utf-8", "backslashreplace")

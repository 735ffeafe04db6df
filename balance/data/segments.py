"""Official AudioSet segment lists -> VIP-ANT indexes, given what a media walk found.

A list is three `#` lines, then `YTID, start, end, "label,label"`. The index keeps the list's order, skips ids without a
gold clip (and without a frame, where frames are required) and names only the gold files, suffixes sorted: what
the published preparation makes. Lists and lines are plain Python rows: two million cost 1 GB and seconds, once.
"""

from __future__ import annotations

import functools
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from balance.data.clip_ids import refuse_duplicates
from balance.data.media_scan import Found, Wanted
from balance.data.vipant_index import labels_from_lists
from balance.errors import UserError
from balance.records import Index, Int64, Labels
from balance.runtime.files import atomic_text


@dataclass(frozen=True, slots=True, eq=False)
class SegmentList:
    """One list, a row per segment: ids; bos, eos: seconds, as text; labels: of one segment, joined by commas."""

    file: str
    ids: list[str]
    bos: list[str]
    eos: list[str]
    labels: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    def label_sets(self) -> Labels:
        return labels_from_lists(pc.split_pattern(pa.array(self.labels, type=pa.string()), ","))


def read_list(path: Path) -> SegmentList:
    """An official segment list. UserError names the file and the line that is none."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = SegmentList(str(path), [], [], [], [])
            for number, line in enumerate(file, 1):
                if not line.startswith("#") and not line.isspace():
                    _add_row(rows, path, number, line.rstrip("\r\n"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason})") from None
    except OSError as error:
        raise UserError(f"{path}: the segment list cannot be read: {error.strerror}") from None
    if not len(rows):
        raise UserError(f"{path}: empty segment list: no segment in it")
    refuse_duplicates(str(path), pa.array(rows.ids, type=pa.string()))
    return rows


def _add_row(rows: SegmentList, path: Path, number: int, line: str) -> None:
    fields = line.split(", ", 3)
    if len(fields) == 4 and len(fields[3]) > 2 and fields[3][0] == fields[3][-1] == '"':
        id, bos, eos, labels = fields
        try:
            is_time = math.isfinite(float(bos)) and math.isfinite(float(eos))
        except ValueError:
            is_time = False
        if is_time and id and not {'"', "/"} & set(id) and "" not in labels[1:-1].split(","):
            rows.ids.append(id)
            rows.bos.append(sys.intern(bos))  # few distinct ones
            rows.eos.append(sys.intern(eos))
            rows.labels.append(sys.intern(labels[1:-1]))
            return
    if line.startswith("{"):
        raise UserError(f"{path} line {number}: a JSON record: this is an index already, not an official segment list")
    raise UserError(f'{path} line {number}: {line[:60]!r} is not `YTID, start, end, "label,label"`')


def wanted(lists: Sequence[SegmentList]) -> Wanted:
    """The ids of all lists, numbered; an id in two lists is one clip (the first list's start counts)."""
    number: dict[str, int] = {}
    start_s: list[float] = []
    end_s: list[float] = []
    for rows in lists:
        for id, bos, eos in zip(rows.ids, rows.bos, rows.eos, strict=True):
            if number.setdefault(id, len(start_s)) == len(start_s):
                start_s.append(float(bos))
                end_s.append(float(eos))
    return Wanted(number, start_s, end_s)


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
        if folders is not None:
            folder = folders[i]
        labels = tuple(segments.labels[row].split(","))
        yield (
            f'{{"id": {json.dumps(segments.ids[row], ensure_ascii=False)}, "dir": {as_json(folder)}, '
            f'"{found.key}": {as_json(audio)}, "frame": {as_json(found.frames[number])}, '
            f'"bos": "{segments.bos[row]}", "eos": "{segments.eos[row]}", "labels": {as_json(labels)}}}\n'
        )


def to_index(matched: Matched) -> Index:
    """The present clips as an index without an index file; `entries` are the lines of the official list."""
    segments, rows = matched.segments, matched.rows.tolist()
    return Index(
        file=segments.file,
        ids=pa.array([segments.ids[row] for row in rows], type=pa.string()),
        paths=pa.array(list(gold_paths(matched)), type=pa.string()),
        labels=segments.label_sets().take(matched.rows),
        entries=pa.array([_line(segments, row).encode() for row in rows], type=pa.large_binary()),
    )


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


def _line(segments: SegmentList, row: int) -> str:
    return f'{segments.ids[row]}, {segments.bos[row]}, {segments.eos[row]}, "{segments.labels[row]}"'


def write_list(path: Path, lines: Sequence[bytes], labels: Labels) -> None:
    """An official list of these lines; the header's counts are theirs."""
    num_labels = int((labels.counts() > 0).sum())
    with atomic_text(path) as file:
        file.write("# Segments csv: seeds, then their neighbours\n")
        file.write(
            f"# num_ytids={len(lines)}, num_segs={len(lines)}, num_unique_labels={num_labels}, "
            f"num_positive_labels={len(labels.codes)}\n"
        )
        file.write("# YTID, start_seconds, end_seconds, positive_labels\n")
        file.writelines(line.decode() + "\n" for line in lines)

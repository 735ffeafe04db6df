"""Lists of segments in AudioSet's official form, in and out.

A list is three `#` lines, then `YTID, start, end, "label,label"`. What other programs make of it is read as well: no
space after a comma, no quotes around a single label, a header line, an index column (`csv.writer`, pandas), CRLF and a
byte order mark. Times are kept as text, so that an official line comes out byte for byte. Lists are plain Python
rows: two million cost 1 GB and seconds, once.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pyarrow as pa
import pyarrow.compute as pc

from balance.data.clip_ids import check_ids, refuse_duplicates
from balance.data.vipant_index import labels_from_lists
from balance.errors import UserError
from balance.records import Labels
from balance.runtime.files import atomic_text
from balance.runtime.remote import AnyPath

# The columns in their order, by the names that a header may give them.
_HEADER_NAMES = (
    {"ytid", "youtube_id", "video_id", "id"},
    {"start_seconds", "start_time_seconds", "start", "start_time", "bos"},
    {"end_seconds", "end_time_seconds", "end", "end_time", "eos"},
    {"positive_labels", "labels", "label"},
)
# What spreadsheets write in the place of an id that begins with - or =, or that looks like a number.
_DESTROYED = re.compile(r"#(NAME\?|VALUE!|REF!|N/A|DIV/0!|NUM!|NULL!)|Err:\d+|-?\d+([.,]\d+)?E\+\d+")


@dataclass(frozen=True, slots=True, eq=False)
class SegmentList:
    """One list, a row per segment: ids; bos, eos: seconds as text, "" where unknown; labels: joined by commas."""

    file: str
    ids: list[str]
    bos: list[str]
    eos: list[str]
    labels: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    def label_sets(self) -> Labels:
        """The labels of all segments, of which some may have none."""
        texts = pa.array([text or None for text in self.labels], type=pa.string())
        return labels_from_lists(pc.split_pattern(texts, ","))

    def line(self, row: int) -> str:
        """A segment in the official form, without a line end."""
        return f'{self.ids[row]}, {self.bos[row]}, {self.eos[row]}, "{self.labels[row]}"'


def read_list(path: AnyPath, *, slices: bool = False) -> SegmentList:
    """A list of segments. slices: one file may have several, at different times. UserError names the file and the line
    that is none."""
    rows = _Rows(path)
    try:
        with io.TextIOWrapper(path.open("rb"), encoding="utf-8-sig", newline="") as file:
            lines = _Lines(file)
            try:
                for fields in csv.reader(lines, skipinitialspace=True, strict=True):
                    rows.add(fields, lines.taken)
                    lines.taken.clear()
            except csv.Error as error:
                rows.refuse(*lines.taken[0], f"not CSV ({error})")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason})") from None
    except OSError as error:
        raise UserError(f"{path}: the segment list cannot be read: {error.strerror}") from None
    return rows.finish(slices)


class _Lines:
    """The lines that are no comments, and (number, line) of those that the caller has taken since it cleared them."""

    def __init__(self, file: Iterable[str]) -> None:
        self._file = file
        self.taken: list[tuple[int, str]] = []

    def __iter__(self) -> Iterator[str]:
        for number, line in enumerate(self._file, 1):
            is_comment = line.startswith(("#", '"#')) and not _DESTROYED.match(line.lstrip('"'))
            if not is_comment and not line.isspace():
                self.taken.append((number, line))
                yield line.rstrip()


class _Readings(dict[str, str]):
    """Text -> what a function reads in it, once for each distinct text: times are few, and label sets recur."""

    def __init__(self, read: Callable[[str], str]) -> None:
        super().__init__()
        self._read = read

    def __missing__(self, text: str) -> str:
        value = self[text] = self._read(text)
        return value


class _Rows:
    """Row after row of one list; the first one decides which columns there are."""

    def __init__(self, path: AnyPath) -> None:
        self._path = path
        self._rows = SegmentList(str(path), [], [], [], [])
        self._numbers: list[int] = []
        self._columns: tuple[int, int, int, int] | None = None
        self._width = 0
        self._times, self._labels = _Readings(_time), _Readings(_labels)

    def add(self, fields: list[str], lines: Sequence[tuple[int, str]]) -> None:
        """lines: the row's own, of which there must be one."""
        number, line = lines[0]
        if self._columns is None:
            self._columns, is_header = _columns(fields)
            self._width = len(fields)
            if is_header:
                return
        if len(lines) > 1 or len(fields) != self._width or not self._add_segment(number, fields):
            self.refuse(number, line, 'not `YTID, start, end, "label,label"`')

    def _add_segment(self, number: int, fields: list[str]) -> bool:
        assert self._columns is not None, "set by the first line"
        if len(fields) <= max(self._columns):
            return False
        id, bos, eos, labels = [fields[column] for column in self._columns]
        if _DESTROYED.fullmatch(id):
            why = f"without its id: a spreadsheet made {id} of it. Take this line from the original list"
            self.refuse(number, ", ".join(fields), why)
        bos, eos, labels = self._times[bos], self._times[eos], self._labels[labels]
        if not (bos and eos and labels):
            return False
        if not id or '"' in id or "/" in id:
            return False
        self._numbers.append(number)
        self._rows.ids.append(id)
        self._rows.bos.append(bos)
        self._rows.eos.append(eos)
        self._rows.labels.append(labels)
        return True

    def refuse(self, number: int, line: str, why: str) -> NoReturn:
        if line.startswith("{"):
            why = "a JSON record: this is an index already, not a list of segments"
        raise UserError(f"{self._path} line {number}: {line.rstrip()[:60]!r} is {why}")

    def finish(self, slices: bool) -> SegmentList:
        if not len(self._rows):
            raise UserError(f"{self._path}: empty segment list: no segment in it")
        ids = pa.array(self._rows.ids, type=pa.string())
        check_ids(ids, lambda row: f"{self._path} line {self._numbers[row]}")
        if slices:
            ids = pa.array([f"{id}_{bos}" for id, bos in zip(self._rows.ids, self._rows.bos, strict=True)], pa.string())
        refuse_duplicates(str(self._path), ids)
        return self._rows


def _columns(fields: list[str]) -> tuple[tuple[int, int, int, int], bool]:
    """(places of id, start, end, labels; whether this line is a header that says so)."""
    given = [name.strip().lstrip("#").strip().lower() for name in fields]
    places = [next((i for i, name in enumerate(given) if name in names), -1) for names in _HEADER_NAMES]
    if min(places) >= 0:
        return (places[0], places[1], places[2], places[3]), True
    has_index = len(fields) == 5 and fields[0].strip().isdigit()
    return ((1, 2, 3, 4) if has_index else (0, 1, 2, 3)), False


def _time(text: str) -> str:
    """A number of seconds without blanks around it; "" where it is none."""
    try:
        return text.strip() if math.isfinite(float(text)) else ""
    except ValueError:
        return ""


def _labels(text: str) -> str:
    """The labels without blanks around each, joined by commas; "" where one is empty or holds a quotation mark."""
    names = [name.strip() for name in text.strip().strip('"').split(",")]
    return "" if "" in names or any('"' in name for name in names) else ",".join(names)


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

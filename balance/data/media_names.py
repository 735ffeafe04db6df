"""File names as download tools give them -> the listed clip that each means.

In: a name without folder and suffix. Out: the number of its clip, or nothing. Known are `ID`, `YID`, `id_ID`,
`ID.p0`, `Title [ID]`, `Title-ID`, each also with the segment's times: `ID_30`, `ID_30000`, `ID_30_40`, `ID_30.0-40.0`.
An id may hold `_`, `-` and digits, so that no pattern alone can tell where it ends: what is listed decides.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

_IN_BRACKETS = re.compile(r".*\[([^\[\]]+)\](.*)")
_YOUTUBE_ID_CHARS = 11
_LIKELY_ID = re.compile(r"(?:id_|Y(?=.{11}(?:_|$)))?(.+?)(?:_[\d.]+(?:[_-][\d.]+)?)?")


@dataclass(frozen=True, slots=True, eq=False)
class Wanted:
    """The clips to look for: number[id] counts from 0; start_s, end_s[number] tell segments of one video apart (NaN
    where nobody says); aliases: likewise the numbers of other names that flat files may have."""

    number: Mapping[str, int]
    start_s: list[float]
    end_s: list[float]
    aliases: Mapping[str, int] = field(default_factory=dict)


def find_clip(name: str, wanted: Wanted) -> tuple[int, bool] | None:
    """(the clip's number, whether the name says that the file holds only its segment); None where none is meant."""
    if (clip := wanted.number.get(name)) is not None:  # most names, at once
        return clip, False
    bare = name.removesuffix(".p0")
    is_cut = len(bare) < len(name)
    for reading in _readings(bare):
        if (clip := wanted.number.get(reading)) is not None:
            return clip, is_cut
    for reading in _readings(bare):
        for id, times in _with_times(reading):
            if (clip := wanted.number.get(id)) is not None and _is_segment(times, wanted, clip):
                return clip, True
    return (wanted.aliases[bare], False) if bare in wanted.aliases else None


def likely_id(name: str) -> str:
    """The id that a name seems to hold, for messages: nothing is listed that could decide."""
    bare = name.removesuffix(".p0")
    bracketed = _IN_BRACKETS.fullmatch(bare)
    found = _LIKELY_ID.fullmatch(bracketed[1] if bracketed else bare)
    return found[1] if found else bare


def _readings(bare: str) -> Iterator[str]:
    """The name, and what is left of it without what tools write before an id."""
    yield bare
    for prefix in ("Y", "id_"):
        if bare.startswith(prefix):
            yield bare.removeprefix(prefix)
    if "[" in bare and (bracketed := _IN_BRACKETS.fullmatch(bare)):
        yield bracketed[1] + bracketed[2]
    if bare[:-_YOUTUBE_ID_CHARS].endswith("-"):
        yield bare[-_YOUTUBE_ID_CHARS:]


def _with_times(reading: str) -> Iterator[tuple[str, list[str]]]:
    """(an id, its times) as the last one or two numbers could mean them."""
    id, _, last = reading.rpartition("_")
    yield id, last.split("-")
    shorter, _, first = id.rpartition("_")
    yield shorter, [first, last]


def _is_segment(times: list[str], wanted: Wanted, clip: int) -> bool:
    """Whether the numbers are the segment's start, or its start and end, in seconds (tools cut off fractions) or in
    milliseconds (which a single number must be exactly)."""
    try:
        values = [float(text) for text in times]
    except ValueError:
        return False
    listed_s = (wanted.start_s[clip], wanted.end_s[clip])
    if len(values) == 1:
        return abs(values[0] - listed_s[0]) < 1 or abs(values[0] - 1000 * listed_s[0]) < 1
    return len(values) == 2 and any(
        all(abs(value / unit - s) < 1 for value, s in zip(values, listed_s, strict=True)) for unit in (1.0, 1000.0)
    )

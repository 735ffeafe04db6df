"""Ids of clips: files of ids, ids that occur twice, and which YouTube video an id names.

Two lists may write one video differently (`Ysn1zcw0bbZU_30.000`, `sn1zcw0bbZU`); the decontamination and the probe's
groups compare the YouTube ids.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from balance.errors import UserError
from balance.records import duplicate_ids
from balance.runtime.wording import listed

_YOUTUBE_ID = r"^Y?(?P<id>[A-Za-z0-9_-]{11})(?:$|_)"


def read_id_file(path: Path) -> Any:
    """One id a line, UTF-8, no header -> Arrow string array. CRLF and a missing last line end are tolerated."""
    try:
        text = path.read_bytes().decode()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; it must hold the id of each vector, one a line") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from None
    lines = text.replace("\r\n", "\n").split("\n")
    if lines[-1] == "":
        lines.pop()
    if "" in lines:
        raise UserError(f"{path} line {lines.index('') + 1}: empty line; one id a line")
    return pa.array(lines, type=pa.string())


def refuse_duplicates(where: str, ids: Any) -> None:
    """UserError that names the ids which occur more than once."""
    twice = duplicate_ids(ids)
    if twice:
        raise UserError(f"{where}: ids that occur more than once: {listed(twice)}")


def youtube_id(clip_id: str) -> str:
    """The YouTube id in a clip's id: `Ysn1zcw0bbZU_30.000` → `sn1zcw0bbZU`; an id of another form as it is."""
    found = re.match(_YOUTUBE_ID.replace("$", r"\Z"), clip_id)
    return found["id"] if found else clip_id


def youtube_ids(ids: Any) -> Any:
    """`youtube_id` of an Arrow string array."""
    return pc.coalesce(pc.struct_field(pc.extract_regex(ids, _YOUTUBE_ID), "id"), ids)


def refuse_seeds_in_eval(seed_ids: Any, eval_ids: Any) -> None:
    """UserError if a seed is an evaluation clip (by YouTube id), naming up to five."""
    shared = seed_ids.filter(pc.is_in(youtube_ids(seed_ids), value_set=youtube_ids(eval_ids)))
    if len(shared):
        names = ", ".join(shared[:5].to_pylist())
        raise UserError(
            f"{len(shared):,} seeds are evaluation clips ({names}{', …' if len(shared) > 5 else ''}): take them out of "
            "dataset.balanced, or type dataset.eval=null to run without the guard"
        )

"""A tree of symbolic links that gives flat media VIP-ANT's layout: `{list}_{first}_{last}/aclip/{id}.p0.{suffix}`.

In: the clips of a list that have media. Out: relative links under the real path of `index.out`. Nothing but a link that
this program made is ever replaced, and it knows its own by where they lead: into the media folder of this indexing
or of the last one, whose `index.json` says so. Everything in the way is found before the first link is made; the
price is that the links are worked out twice.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path

import numpy as np

from balance.data.segments import Matched, gold_paths
from balance.errors import UserError
from balance.runtime.files import atomic_symlink

CHUNK_CLIPS = 35_000  # clips per folder of links: as many as VIP-ANT's own chunks hold


class LinkTree:
    """The links under `out` that lead into `media`; last: the `leads_to` of the indexing before, if there was one."""

    def __init__(self, media: Path, out: Path, *, last: str) -> None:
        self._media, self._out = os.path.realpath(media), os.path.realpath(out)
        # Seen from a link, which lies two folders below `out`; the same wherever both are moved together.
        self.leads_to = os.path.normpath(os.path.join("..", "..", os.path.relpath(self._media, self._out)))
        self._own = tuple(f"{start}/" for start in (self.leads_to, last) if start)

    def refuse_obstacles(self, matched: Matched, stem: str) -> None:
        """UserError that names what `make` would have to write over or through."""
        for folder, links in self._folders(matched, stem):
            for part in (os.path.dirname(folder), folder):
                if os.path.islink(part) or (os.path.exists(part) and not os.path.isdir(part)):
                    kind = "link" if os.path.islink(part) else "file"
                    raise UserError(f"{part} is a {kind}: links are only made in folders of index.out. {_REMEDY}")
            if os.path.isdir(folder):
                self._refuse_others(folder, links)
        self._refuse_loops(matched, stem)

    def make(self, matched: Matched, stem: str) -> None:
        """The links to each clip's gold files and frames; `refuse_obstacles` comes first."""
        for folder, links in self._folders(matched, stem):
            os.makedirs(folder, exist_ok=True)
            for name, target in links.items():
                _symlink(target, f"{folder}/{name}")

    def _folders(self, matched: Matched, stem: str) -> Iterator[tuple[str, dict[str, str]]]:
        """(a folder of links, link name -> where it leads), the folders of one chunk after another."""
        found, ids = matched.found, matched.segments.ids
        clips = zip(matched.rows.tolist(), matched.numbers.tolist(), gold_paths(matched), strict=True)
        for chunk, group in groupby(clips, key=lambda clip: _chunk(matched, stem, clip[0])):
            audio: dict[str, str] = {}
            frames: dict[str, str] = {}
            for row, number, path in group:
                id = ids[row]
                if found.folder[number] < 0:
                    audio[f"{id}.p0.{path.rpartition('.')[2]}"] = f"{self.leads_to}/{path}"
                    continue
                source = os.path.join(self.leads_to, found.folders[found.folder[number]])
                audio |= {f"{id}.{rest}": f"{source}/{found.key}/{id}.{rest}" for rest in found.audio[number]}
                frames |= {f"{id}.{rest}": f"{source}/frame/{id}.{rest}" for rest in found.frames[number]}
            yield f"{self._out}/{chunk}/{found.key}", audio
            if found.has_frames:
                yield f"{self._out}/{chunk}/frame", frames

    def _refuse_loops(self, matched: Matched, stem: str) -> None:
        """A link to itself: the media folder holds, or is, the folder of links."""
        found = matched.found
        chunks = {f"{self._out}/{chunk}" for chunk in set(chunk_folders(matched, stem))}
        places = found.folder[matched.numbers]
        for place in np.unique(places[places >= 0]).tolist():
            chunk = os.path.realpath(os.path.join(self._media, found.folders[place]))
            if chunk in chunks:
                raise UserError(f"{chunk} would hold the links and holds the media. {_REMEDY}")

    def _refuse_others(self, folder: str, links: Mapping[str, str]) -> None:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name not in links:
                    continue
                if not entry.is_symlink():
                    raise UserError(f"{entry.path} is a file, not a link of this program's. {_REMEDY}")
                target = os.readlink(entry.path)
                if target != links[entry.name] and not target.startswith(self._own):
                    raise UserError(f"{entry.path} is a link to {target}, not one of this program's. {_REMEDY}")


_REMEDY = "Nothing was written over: type another index.out, a new folder beside the media"


def last_leads_to(out: Path) -> str:
    """`LinkTree.leads_to` of the indexing that wrote `index.json` in this folder; "" where there is none."""
    try:
        summary = json.loads((out / "index.json").read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return ""
    value = summary.get("links_lead_to") if isinstance(summary, dict) else None
    return value if isinstance(value, str) else ""


def chunk_folders(matched: Matched, stem: str) -> list[str]:
    """The chunk folder of each clip's links, relative to `index.out`."""
    return [_chunk(matched, stem, row) for row in matched.rows.tolist()]


def _chunk(matched: Matched, stem: str, row: int) -> str:
    first = row // CHUNK_CLIPS * CHUNK_CLIPS
    return f"{stem}_{first}_{min(first + CHUNK_CLIPS, len(matched.segments))}"


def _symlink(target: str, place: str) -> None:
    try:
        os.symlink(target, place)
    except FileExistsError:
        if os.readlink(place) != target:
            atomic_symlink(target, Path(place))

"""A media folder -> which of the listed clips lie where: one walk with scandir, no stat; behind a URL one listing.

In: the root and the listed segments by id. Out: `Found`, columns by the number of the id. Two layouts: VIP-ANT's
`{dir}/aclip/{id}.{rest}` with `{dir}/frame/…` beside it (a name is split at its first dot; the rest of a gold file
begins with `p0.`), and the flat ones of download tools (`media_names`) in any folder. Names alone decide, since two
million stats on a network disk take an hour: what is named .mp3 is taken for one. A file named as FFmpeg's formats are
counts where there is none of libsndfile's. Of a clip in two folders, the first folder by name counts; of its flat
files, the first by name among those that say its times, else among all.
"""

from __future__ import annotations

import os
import sys
from array import array
from bisect import insort
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from balance.data.media import ALL_AUDIO, AUDIO_SUFFIXES, is_clutter
from balance.data.media_names import Wanted, find_clip
from balance.records import Int32, Int64
from balance.runtime.remote import AnyPath, RemotePath

IMAGE_SUFFIXES = frozenset({"jpeg", "jpg", "png", "webp"})
GOLD = "p0."
_NUM_OTHERS = 3


@dataclass(frozen=True, slots=True, eq=False)
class Files:
    """Gold file suffixes of n ids, sorted: id i has `rests[c]` for c in `codes[offsets[i]:offsets[i + 1]]`."""

    rests: list[str]
    offsets: Int64
    codes: Int32

    def __getitem__(self, number: int) -> tuple[str, ...]:
        start, stop = self.offsets[number], self.offsets[number + 1]
        return tuple(self.rests[c] for c in self.codes[start:stop].tolist()) if stop > start else ()

    def first(self, number: int) -> str:
        """The first file suffix of an id that has one."""
        return self.rests[int(self.codes[self.offsets[number]])]


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """What the walk found of n wanted ids.

    folders: sorted chunk folders (parents of `aclip/`), relative to the root, with slashes; folder: (n,) int32 into
    them, −1 where the id has no gold clip in that layout; audio, frames: its files in it; flat: number -> path
    relative to the root, for ids that lie only in a flat layout; key: `aclip`, or `clip` where only folders of that
    older name hold audio; has_frames: whether there is any `frame/` folder; others: paths of the first audio files by
    name that are no listed clip's.
    """

    folders: list[str]
    folder: Int32
    audio: Files
    frames: Files
    flat: dict[int, str]
    key: str
    has_frames: bool
    others: list[str]


def flat_found(paths: Mapping[int, str], num_ids: int) -> Found:
    """What a walk would have found of n ids whose flat files are known: number -> path relative to the root."""
    none = Files([], np.zeros(num_ids + 1, dtype=np.int64), np.empty(0, dtype=np.int32))
    return Found([], np.full(num_ids, -1, dtype=np.int32), none, none, dict(paths), "aclip", False, [])


class _Seen:
    """File after file: number of the id, number of the folder, rest of the name."""

    def __init__(self) -> None:
        self.clips, self.places = array("i"), array("i")
        self.rests: list[str] = []

    def add(self, clip: int, place: int, rest: str) -> None:
        self.clips.append(clip)
        self.places.append(place)
        self.rests.append(rest)


def scan(root: AnyPath, wanted: Wanted, *, skip: Path | None = None, whole: bool = False) -> Found:
    """Walk the tree once; `skip` is a folder not to enter (the one being written, if it lies inside); whole: of flat
    files those whose names say the segment's times are not meant.

    Links to folders are followed, except to a folder that the walk is inside of. Where `skip` is the root itself,
    gold files that are links into it are not seen: an earlier run made them.
    """
    if isinstance(root, RemotePath):
        return _scan_remote(root, wanted, whole)
    top = os.path.realpath(root)
    skipped = os.path.realpath(skip) if skip is not None else None
    walk = _Walk(wanted, top if skipped == top else None, whole)
    stack = [_Folder("", top, ())]
    while stack:
        folder = stack.pop()
        if not folder.relative or folder.real != skipped:  # indexes may be written beside the media
            stack += walk.enter(folder)
    return walk.found()


def _scan_remote(root: RemotePath, wanted: Wanted, whole: bool) -> Found:
    walk = _Walk(wanted, None, whole)
    names_in: dict[str, list[str]] = {}
    for path in sorted(root.walk()):
        relative, _, name = path.rpartition("/")
        names_in.setdefault(relative, []).append(name)
    for relative, names in names_in.items():
        folder = _Folder(relative, "", ())
        walk.begin(folder)
        for name in names:
            if not is_clutter(name):
                walk.add(name, folder)
    return walk.found()


class _Folder(NamedTuple):
    """A folder of the walk: its path as seen from the root, its real path, the folders that links were taken in."""

    relative: str
    real: str
    left: tuple[str, ...]

    @property
    def base(self) -> str:
        """Its own name."""
        return self.relative.rpartition("/")[2]

    def path(self, name: str) -> str:
        """A name in this folder, relative to the root."""
        return f"{self.relative}/{name}" if self.relative else name

    def behind(self, entry: os.DirEntry[str]) -> _Folder | None:
        """The folder that an entry links to; None where it links to none, or the walk would have no end."""
        if not entry.is_symlink() or not entry.is_dir():
            return None
        target, left = os.path.realpath(entry.path), (*self.left, self.real)
        if any(folder == target or folder.startswith(target + os.sep) for folder in left):
            return None
        return _Folder(self.path(entry.name), target, left)


class _Walk:
    """What has been seen so far."""

    def __init__(self, wanted: Wanted, linked_into: str | None, whole: bool) -> None:
        self._wanted, self._whole = wanted, whole
        self._linked_into = linked_into
        self._folders: list[str] = []
        self._gold = {"aclip": _Seen(), "clip": _Seen()}
        self._gold_for_ffmpeg = {"aclip": _Seen(), "clip": _Seen()}
        self._frames = _Seen()
        self._flat: dict[int, tuple[bool, bool, str]] = {}  # (for FFmpeg, the whole video, path): the least counts
        self._others: list[str] = []
        self._has_frames = False

    def enter(self, folder: _Folder) -> list[_Folder]:
        """Take in one folder's files; returns its sub-folders."""
        self.begin(folder)
        may_be_own = folder.base == "frame" or folder.base in self._gold
        below: list[_Folder] = []
        with os.scandir(folder.real) as entries:
            for entry in entries:
                name = entry.name
                if entry.is_dir(follow_symlinks=False):
                    below.append(_Folder(folder.path(name), entry.path, folder.left))
                elif is_clutter(name) or (may_be_own and self._is_own_link(entry)):
                    continue
                elif not self.add(name, folder) and (linked := folder.behind(entry)) is not None:
                    below.append(linked)
        return below

    def begin(self, folder: _Folder) -> None:
        """The files that follow are of this folder."""
        self._folders.append(folder.relative.rpartition("/")[0])
        self._has_frames |= folder.base == "frame"

    def add(self, name: str, folder: _Folder) -> bool:
        """Take in one file; returns whether its name is one of media."""
        base = folder.base
        if base == "frame":
            self._add_frame(name)
        elif name.rpartition(".")[2].lower() not in ALL_AUDIO:
            return False
        elif base not in self._gold or name.count(".") == 1:
            self._add_flat(name, folder)
        else:
            self._add_gold(name, folder, base)
        return True

    def _is_own_link(self, entry: os.DirEntry[str]) -> bool:
        return (
            self._linked_into is not None
            and entry.is_symlink()
            and os.path.realpath(entry.path).startswith(self._linked_into + os.sep)
        )

    def _add_frame(self, name: str) -> None:
        id, _, rest = name.partition(".")
        clip = self._wanted.number.get(id)
        if clip is not None and rest.startswith(GOLD) and rest.rpartition(".")[2].lower() in IMAGE_SUFFIXES:
            self._frames.add(clip, len(self._folders) - 1, sys.intern(rest))

    def _add_gold(self, name: str, folder: _Folder, key: str) -> None:
        id, _, rest = name.partition(".")
        clip = self._wanted.number.get(id)
        if clip is None or not rest.startswith(GOLD):
            self._add_other(folder.path(name))
            return
        gold = self._gold if rest.rpartition(".")[2].lower() in AUDIO_SUFFIXES else self._gold_for_ffmpeg
        gold[key].add(clip, len(self._folders) - 1, sys.intern(rest))

    def _add_flat(self, name: str, folder: _Folder) -> None:
        stem, _, suffix = name.rpartition(".")
        meant = find_clip(stem, self._wanted)
        if meant is None or (self._whole and meant[1]):
            self._add_other(folder.path(name))
            return
        clip, is_segment = meant
        place = (suffix.lower() not in AUDIO_SUFFIXES, not is_segment, folder.path(name))
        self._flat[clip] = min(place, self._flat.get(clip, place))

    def _add_other(self, path: str) -> None:
        if len(self._others) < _NUM_OTHERS or path < self._others[-1]:
            insort(self._others, path)
            del self._others[_NUM_OTHERS:]

    def _take_gold_for_ffmpeg(self) -> None:
        """Counts these files where libsndfile's are not there: a video beside its audio is no second clip."""
        for key, gold in self._gold.items():
            others = self._gold_for_ffmpeg[key]
            known = {*gold.clips, *(clip for clip, (for_ffmpeg, *_) in self._flat.items() if not for_ffmpeg)}
            for clip, place, rest in zip(others.clips, others.places, others.rests, strict=True):
                if clip not in known:
                    gold.add(clip, place, rest)

    def found(self) -> Found:
        self._take_gold_for_ffmpeg()
        num_ids = len(self._wanted.start_s)
        folders = sorted(set(self._folders))
        rank = {name: i for i, name in enumerate(folders)}
        rank_of = np.array([rank[name] for name in self._folders], dtype=np.int32)
        key = "clip" if self._gold["clip"].rests and not self._gold["aclip"].rests else "aclip"
        gold = self._gold[key]
        clips, places = np.array(gold.clips, dtype=np.int64), rank_of[np.array(gold.places, dtype=np.int64)]
        folder = np.full(num_ids, len(folders), dtype=np.int32)
        np.minimum.at(folder, clips, places)
        folder[folder == len(folders)] = -1
        audio = _files(gold, clips, places, folder)
        frame_clips = np.array(self._frames.clips, dtype=np.int64)
        frame_places = rank_of[np.array(self._frames.places, dtype=np.int64)]
        frames = _files(self._frames, frame_clips, frame_places, folder)
        return Found(
            folders=folders,
            folder=folder,
            audio=audio,
            frames=frames,
            flat={clip: path for clip, (*_, path) in self._flat.items() if folder[clip] < 0},
            key=key,
            has_frames=self._has_frames,
            others=self._others,
        )


def _files(seen: _Seen, clips: Int64, places: Int32, folder: Int32) -> Files:
    """The files that lie in the folder chosen for their clip, by clip and then by rest."""
    rests = sorted(set(seen.rests))
    code_of = {rest: i for i, rest in enumerate(rests)}
    codes = np.fromiter((code_of[rest] for rest in seen.rests), dtype=np.int32, count=len(seen.rests))
    chosen = folder[clips] == places
    clips, codes = clips[chosen], codes[chosen]
    order = np.lexsort((codes, clips))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(clips, minlength=len(folder)))]).astype(np.int64)
    return Files(rests, offsets, codes[order])

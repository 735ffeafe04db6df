"""The clips that the page plays: the seeds of best, worst and random label agreement, each with its first neighbours.

In: splits, neighbours at K, agreement by seed. Out: frozen values with links to the sound (and to the video frame that
evaluation uses, where the index names one and the file is there). A clip inside a container has no link. Where page and
media lie near each other the relative link comes first, so that the two can move together; the absolute one follows.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from urllib.parse import quote

import numpy as np

from balance.data.media import ALL_AUDIO, without_stretch
from balance.records import Float64, Index, Int64, Neighbours, Split
from balance.report import spectrogram
from balance.report.sound import Clips, Sound, Wave, decode, mp3
from balance.runtime.remote import AnyPath, RemotePath

SEEDS_PER_PART = 4
NEIGHBOURS_PER_SEED = 5
NEAR_LEVELS = 4  # of folders that a relative link may go up: outputs/runs/DAY/TIME up to where the run was started


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip on the page.

    labels: (name, whether the seed has it too); audio: links to try in this order, or the sound itself as a data URI,
    none where it cannot be played; picture: spectrogram as a data URI; frame: link to a video frame; rank, similarity:
    of a neighbour.
    """

    id: str
    labels: tuple[tuple[str, bool], ...]
    audio: tuple[str, ...]
    picture: str | None
    frame: str | None
    rank: int | None = None
    similarity: float | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """A seed and its first neighbours, best first."""

    seed: Clip
    neighbours: tuple[Clip, ...]

    @property
    def clips(self) -> tuple[Clip, ...]:
        """All of them, the seed first."""
        return self.seed, *self.neighbours


@dataclass(frozen=True, slots=True)
class Part:
    """Groups chosen by one rule."""

    title: str
    groups: tuple[Group, ...]


@dataclass(frozen=True, slots=True)
class Links:
    """Where the page finds the media. folder: of the media on this machine; bases: what goes before a clip's path in a
    link, each ending in a slash, the one to try first first."""

    folder: AnyPath
    bases: tuple[str, ...]

    @staticmethod
    def to(media: AnyPath, base: str | None, page: Path, *, inside: int = 0) -> Links:
        """media: the media's folder or URL; base: a path or URL to link to instead, or None; page: the folder of the
        page, so many levels inside a run's folder. A browser opens http(s) alone."""
        if base is not None and "://" in base:
            return Links(media, (base.rstrip("/") + "/",))
        if base is None and isinstance(media, RemotePath):
            return Links(media, (f"{media}/",) if media.scheme in ("http", "https") else ())
        target = Path(str(media) if base is None else base).expanduser().absolute()
        bases = [target.as_uri().rstrip("/") + "/"]
        relative = os.path.relpath(target, page.absolute())
        if relative.split("/").count("..") <= NEAR_LEVELS + inside:
            bases.insert(0, f"./{quote(os.fsencode(relative))}/")
        return Links(media, tuple(bases))

    def audio(self, index: Index, row: int) -> tuple[str, ...]:
        """The links to a clip's sound."""
        path = self.playable(index, row)
        return () if path is None else tuple(base + path for base in self.bases)

    def playable(self, index: Index, row: int) -> str | None:
        """What follows the base in a link to a clip's sound; None where it cannot be played."""
        key: str = index.paths[row].as_py()
        path = without_stretch(key)
        if index.offsets is not None or path.rsplit(".", 1)[-1].lower() not in ALL_AUDIO:
            return None
        return quote(path) + key.removeprefix(path)

    def frame(self, index: Index, row: int) -> str | None:
        """The link to the middle video frame that a VIP-ANT record names, if that file is there."""
        if index.lines is None or not self.bases:
            return None
        record = json.loads(index.lines[row].as_py())
        frames = record.get("frame") if isinstance(record, dict) else None
        frames = [frames] if isinstance(frames, str) else frames
        if not isinstance(frames, list) or not frames:
            return None
        folder = PurePosixPath(str(record.get("dir") or ""))
        path = (folder / "frame" / f"{record['id']}.{frames[-(-len(frames) // 2) - 1]}").as_posix()
        return self.bases[-1] + quote(path) if (self.folder / path).is_file() else None


def choose(
    seeds: Split,
    pool: Split,
    neighbours: Neighbours,
    agreement: Float64,
    *,
    names: Mapping[str, str],
    links: Links,
    sound: Sound | None,
    num_embedded: int,
    rng_seed: int,
) -> list[Part]:
    """The parts that have any group. agreement: (S,) float64, NaN without labels; names: label id -> name; sound: what
    spectrograms are drawn from; num_embedded: clips, in the page's order, whose sound the page holds itself; rng_seed:
    of the seeds drawn at random."""
    labelled = np.flatnonzero(~np.isnan(agreement))
    order = labelled[np.argsort(-agreement[labelled], kind="stable")]
    best = order[:SEEDS_PER_PART]
    worst = order[max(SEEDS_PER_PART, len(order) - SEEDS_PER_PART) :][::-1]
    rest = np.setdiff1d(np.arange(len(agreement)), np.concatenate([best, worst]))
    drawn = np.random.default_rng(rng_seed).choice(rest, min(SEEDS_PER_PART, len(rest)), replace=False)
    chosen: Sequence[tuple[str, Int64]] = (
        ("Best label agreement", best),
        ("Worst label agreement", worst),
        ("Random seeds", np.sort(drawn)),
    )
    places = [(title, int(at)) for title, some in chosen for at in some]
    clips = _Clips(seeds.index, pool.index, neighbours, names, links)
    groups = [clips.group(at) for _, at in places]
    if sound is not None:
        groups = _with_sound(groups, decode([clips.rows(at) for _, at in places], sound), num_embedded)
    titles = list(dict.fromkeys(title for title, _ in places))
    return [Part(x, tuple(g for (title, _), g in zip(places, groups, strict=True) if title == x)) for x in titles]


def _with_sound(groups: Sequence[Group], waves: Iterator[list[Wave | None]], num_embedded: int) -> list[Group]:
    """The same with spectrograms, and the first clips with their sound."""
    out = []
    for group, of_group in zip(groups, waves, strict=True):
        made = []
        for clip, wave, picture in zip(group.clips, of_group, spectrogram.draw(of_group), strict=True):
            audio = clip.audio
            if wave is not None and num_embedded > 0:
                audio, num_embedded = (mp3(wave),), num_embedded - 1
            made.append(replace(clip, audio=audio, picture=picture))
        out.append(Group(made[0], tuple(made[1:])))
    return out


@dataclass(frozen=True, slots=True, eq=False)
class _Clips:
    seeds: Index
    pool: Index
    neighbours: Neighbours
    names: Mapping[str, str]
    links: Links

    def rows(self, at: int) -> Clips:
        """The seed at this place of the neighbours, and its first neighbours: index and row of each."""
        found = self.neighbours.pool_rows[at, :NEIGHBOURS_PER_SEED].tolist()
        return [(self.seeds, int(self.neighbours.seed_rows[at])), *((self.pool, row) for row in found)]

    def group(self, at: int) -> Group:
        """The same as clips, without what is made of their sound."""
        (_, seed_row), *rest = self.rows(at)
        of_seed = set(self.seeds.labels[seed_row])
        seed = self._clip(self.seeds, seed_row, set())
        similarities = self.neighbours.similarities[at].tolist()
        neighbours = (
            replace(self._clip(index, row, of_seed), rank=rank, similarity=similarities[rank - 1])
            for rank, (index, row) in enumerate(rest, start=1)
        )
        return Group(seed, tuple(neighbours))

    def _clip(self, index: Index, row: int, of_seed: set[str]) -> Clip:
        return Clip(
            id=index.ids[row].as_py(),
            labels=tuple((self.names.get(label, label), label in of_seed) for label in index.labels[row]),
            audio=self.links.audio(index, row),
            picture=None,
            frame=self.links.frame(index, row),
        )

"""A data set's clips as three lists of this program: seeds, pool and evaluation clips, by source.

`python -m balance.index` reads the data set; what it lists is divided so that all clips of one source lie in one list
and labels keep their shares. A clip's new id begins with its source, `s00012_NAME`, by which `probe.source` tells it.
AudioSet comes in three lists, whose ids are the videos: they stay as they are. Price: a class with fewer sources than
lists is not in each of them.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

PARTS = ("seeds", "pool", "evaluation")
SOURCE = r"^(s\d+)_"  # of the new ids
Line = dict[str, Any]  # of an index


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """lists: given to `index.segments`, relative to the data set's folder; media: likewise; parts: the list of a part
    that the data set itself names; source: of a clip's id, in the data set's folder."""

    name: str
    lists: Sequence[str] = ()
    media: str = "."
    parts: tuple[str, ...] = ()
    source: Callable[[Path], Callable[[str], str]]


def by_pattern(pattern: str | None) -> Callable[[str], str]:
    """A clip's source is the pattern's first group in its id, else the clip itself."""

    def source(id: str) -> str:
        found = None if pattern is None else re.search(pattern, id)
        return f"alone {id}" if found is None else f"of {found.group(1)}"

    return source


def by_uploader(data: Path) -> Callable[[str], str]:
    """FSD50K's clips by who uploaded them, as its own division into two sets does."""
    uploader: dict[str, str] = {}
    for name in ("dev", "eval"):
        known = json.loads((data / "FSD50K.metadata" / f"{name}_clips_info_FSD50K.json").read_text("utf-8"))
        uploader |= {id: clip["uploader"] for id, clip in known.items()}
    return uploader.__getitem__


def layout(name: str, pattern: str | None) -> Layout:
    """Of a data set's name on the command line. pattern: `--source`."""
    known = (
        Layout(name="folders", source=lambda data: by_pattern(pattern)),
        Layout(
            name="esc50",
            lists=["meta/esc50.csv"],
            media="audio",
            source=lambda data: by_pattern(pattern or r"^\d-(\d+)-"),  # the recording on freesound.org
        ),
        Layout(
            name="fsd50k",
            lists=["FSD50K.ground_truth/dev.csv", "FSD50K.ground_truth/eval.csv"],
            parts=("", "evaluation"),
            source=by_uploader,
        ),
        Layout(
            name="audioset",
            lists=["balanced_train_segments.csv", "unbalanced_train_segments.csv", "eval_segments.csv"],
            parts=PARTS,
            source=lambda data: by_pattern(None),
        ),
    )
    return next(one for one in known if one.name == name)


def read(index: Path) -> list[Line]:
    """The lines of an index."""
    return [json.loads(line) for line in index.read_text("utf-8").splitlines()]


def divide(
    given: Sequence[Sequence[Line]], layout: Layout, data: Path, shares: Sequence[float], seed: int
) -> list[tuple[Line, str, str]]:
    """(clip, source, part) of all clips. given: the clips of each list; shares: of PARTS, as far as the layout leaves
    them open; seed: of the order in which sources are dealt out."""
    source = layout.source(data)
    out = []
    for part, clips in zip(layout.parts or ("",), given, strict=True):
        out += [(clip, source(clip["id"]), part) for clip in clips]
    open_parts = [part for part in PARTS if part not in layout.parts]
    open_shares = [share for part, share in zip(PARTS, shares, strict=True) if part in open_parts]
    dealt = deal(
        [(clip["labels"], source) for clip, source, part in out if not part],
        [share / sum(open_shares) for share in open_shares],
        np.random.default_rng(seed),
    )
    return [(clip, source, part or open_parts[dealt[source]]) for clip, source, part in out]


def deal(
    clips: Sequence[tuple[Sequence[str], str]], shares: Sequence[float], rng: np.random.Generator
) -> dict[str, int]:
    """Source -> the number of its part, of (labels, source) of each clip. A source goes where its labels are furthest
    below their share; sources of rare labels are dealt out first."""
    counts = Counter(label for labels, _ in clips for label in labels)
    missing = [{label: share * count for label, count in counts.items()} for share in shares]
    labels_of: dict[str, Counter[str]] = defaultdict(Counter)
    for labels, source in clips:
        labels_of[source].update(labels)
    rarest = {source: min(map(counts.__getitem__, labels), default=0) for source, labels in labels_of.items()}
    part_of = {}
    for source in sorted(rng.permutation(np.array(list(labels_of))).tolist(), key=rarest.__getitem__):
        labels = labels_of[source]
        part = int(np.argmax([sum(count * below[label] for label, count in labels.items()) for below in missing]))
        part_of[source] = part
        for label, count in labels.items():
            missing[part][label] -= count
    return part_of


def write(clips: Sequence[tuple[Line, str, str]], index: Path, out: Path) -> None:
    """`out/src_seeds.csv` and its like of (clip, source, part), their media as links to what `index` lists."""
    media = out / "clips" / "aclip"
    media.mkdir(parents=True, exist_ok=True)
    number = {source: i for i, source in enumerate(dict.fromkeys(source for _, source, _ in clips))}
    lines: dict[str, list[str]] = {part: [] for part in PARTS}
    for clip, source, part in clips:
        suffix = clip["aclip"][0]
        new = clip | {"id": f"s{number[source]:05d}_{clip['id']}", "dir": "clips"}
        link = media / f"{new['id']}.{suffix}"
        link.unlink(missing_ok=True)
        link.symlink_to((index / clip["dir"] / "aclip" / f"{clip['id']}.{suffix}").resolve())
        lines[part].append(json.dumps(new) + "\n")
    for part, own in lines.items():
        (out / f"src_{part}.csv").write_text("".join(own), "utf-8")

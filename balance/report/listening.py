"""Which clips to play on the page: seeds of best, worst and random label agreement, with their first neighbours.

In: splits, neighbours at K, agreement by seed. Out: plain values with links to the media (and to the video frame that
evaluation uses, where the index names one and the file is there). Clips inside containers have no link.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

import numpy as np

from balance.data.media import AUDIO_SUFFIXES
from balance.records import Float64, Index, Neighbours, Split

NUM_SEEDS = 4  # a part
NUM_NEIGHBOURS = 5


def base_url(media_base: str | None, media: Path) -> str:
    """What goes before a clip's path in a link: a URL as it is, a folder as a file URL; ends in a slash."""
    if media_base is None:
        return media.as_uri().rstrip("/") + "/"
    if "://" in media_base:
        return media_base.rstrip("/") + "/"
    return Path(media_base).expanduser().absolute().as_uri().rstrip("/") + "/"


def choose(
    seeds: Split,
    pool: Split,
    neighbours: Neighbours,
    agreement: Float64,
    *,
    names: Mapping[str, str],
    base: str,
    media: Path,
    seed: int,
) -> list[dict[str, Any]]:
    """Parts (best, worst, random) of groups: a seed, then its first neighbours. agreement: (S,), nan without labels.

    Each clip: id, labels as (name, shared with the seed), audio and frame (URL or None); neighbours also rank and
    similarity. Random seeds are drawn with `seed`.
    """
    labelled = np.flatnonzero(~np.isnan(agreement))
    order = labelled[np.argsort(-agreement[labelled], kind="stable")]
    best = order[:NUM_SEEDS]
    worst = order[max(NUM_SEEDS, len(order) - NUM_SEEDS) :][::-1]
    rest = np.setdiff1d(np.arange(len(agreement)), np.concatenate([best, worst]))
    drawn = np.random.default_rng(seed).choice(rest, min(NUM_SEEDS, len(rest)), replace=False)

    def clip(index: Index, row: int, of_seed: set[str]) -> dict[str, Any]:
        audio, frame = _links(index, row, base, media)
        labels = [(names.get(label, label), label in of_seed) for label in index.labels[row]]
        return {"id": index.ids[row].as_py(), "labels": labels, "audio": audio, "frame": frame}

    def group(at: int) -> list[dict[str, Any]]:
        row = int(neighbours.seed_rows[at])
        of_seed = set(seeds.index.labels[row])
        found = [clip(seeds.index, row, set())]
        for rank in range(min(NUM_NEIGHBOURS, neighbours.k)):
            one = clip(pool.index, int(neighbours.pool_rows[at, rank]), of_seed)
            found.append(one | {"rank": rank + 1, "similarity": float(neighbours.similarities[at, rank])})
        return found

    parts = (("Best label agreement", best), ("Worst label agreement", worst), ("Random seeds", np.sort(drawn)))
    return [{"title": title, "groups": [group(at) for at in some.tolist()]} for title, some in parts if len(some)]


def _links(index: Index, row: int, base: str, media: Path) -> tuple[str | None, str | None]:
    path = index.paths[row].as_py()
    plain = index.offsets is None and path.rsplit(".", 1)[-1].lower() in AUDIO_SUFFIXES
    audio = base + quote(path) if plain else None
    if index.lines is None:
        return audio, None
    record = json.loads(index.lines[row].as_py())
    frames = record.get("frame") if isinstance(record, dict) else None
    frames = [frames] if isinstance(frames, str) else frames
    if not isinstance(frames, list) or not frames:
        return audio, None
    folder = PurePosixPath(str(record.get("dir") or ""))
    frame = (folder / "frame" / f"{record['id']}.{frames[-(-len(frames) // 2) - 1]}").as_posix()
    return audio, base + quote(frame) if (media / frame).is_file() else None

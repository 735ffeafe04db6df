"""index.html: the map as one self-contained file that opens from the disk, without network and server.

In: the clips, their points, and where their sound lies. Out: the page, whose data are gzip in base64: JSON columns, and
the spectrograms as raw bytes beside them. Nothing that users named is ever markup: the script reads the columns and
writes text nodes. The page draws on a plain canvas: libraries for such maps want modules, workers or a server, none of
which a browser allows for a file on the disk.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from markupsafe import Markup

from balance.atlas.clips import DROPPED, NEIGHBOUR, POOL, ROLES, Shown
from balance.atlas.config import AtlasConfig
from balance.atlas.projection import Projected
from balance.curation.removed import Rule
from balance.records import Bool, Float32, Int64
from balance.report import html, spectrogram
from balance.report.listening import Links
from balance.report.sound import Sound, decode, mp3
from balance.results import explain
from balance.results.read_run import Run
from balance.runtime import files

GRID = (1 << 16) - 1  # the page's coordinates are whole numbers up to it
PICTURE = (96, 48)  # pixels of a spectrogram
_PRIORITY = np.array([0, 2, 1, 3, 4])  # of the roles: whose sound the page holds first


@dataclass(frozen=True, slots=True)
class Held:
    """What the page holds beside its points."""

    num_pictures: int
    num_sounds: int
    lines_per_seed: int


def write(
    path: Path,
    run: Run,
    clips: Shown,
    projected: Projected,
    *,
    names: Mapping[str, str],
    links: Links,
    sound: Sound | None,
    config: AtlasConfig,
    num_embedded: int,
) -> Held:
    """The page. names: label id -> name; sound: what spectrograms are drawn from; num_embedded: clips whose sound the
    page holds itself."""
    pictured, pictures, sounds = _sounds(clips, sound, config.spectrograms, num_embedded)
    lines = _lines(run, clips, config.lines)
    data = {
        "dataset": run.facts.source.name,
        "k": run.k,
        "method": projected.method,
        "beside": explain.beside(run),
        "roles": list(ROLES),
        "rules": [{"name": rule.name, "title": rule.title} for rule in Rule],
        "bases": list(links.bases),
        "picture": PICTURE,
        "pictured": pictured,
        "sounds": sounds,
        **_columns(clips, projected.points, names, links),
        **lines,
    }
    counted = counts(clips)
    text = (
        html.environment()
        .get_template("atlas.html")
        .render(
            dataset=run.facts.source.name,
            k=run.k,
            method=projected.method,
            counts=counted,
            left_out={role: clips.there[role] - n for role, n in counted.items() if n < clips.there[role]},
            data=_packed(json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")),
            pictures=_packed(pictures),
        )
    )
    with files.atomic_text(path) as file:
        file.write(text)
    return Held(len(pictured), len(sounds), lines["lines_per_seed"])


def role_names(clips: Shown) -> list[str]:
    """(n,) the role of each clip by name."""
    return [ROLES[role] for role in clips.role.tolist()]


def is_of_pool(clips: Shown) -> Bool:
    """(n,) whether a clip is one that seeds choose from."""
    return np.isin(clips.role, (NEIGHBOUR, DROPPED, POOL))


def counts(clips: Shown) -> dict[str, int]:
    """Role -> clips that are shown, of those that the run has at all."""
    shown = np.bincount(clips.role, minlength=len(ROLES)).tolist()
    return {role: n for role, n in zip(ROLES, shown, strict=True) if clips.there[role]}


def _packed(data: bytes) -> Markup:
    """gzip in base64, the same bytes for the same data."""
    return Markup(base64.b64encode(gzip.compress(data, 9, mtime=0)).decode())


def _columns(clips: Shown, points: Float32, names: Mapping[str, str], links: Links) -> dict[str, Any]:
    """The clips, a list per column."""
    rules = {rule.name: number for number, rule in enumerate(Rule)}
    labels = sorted({label for some in clips.labels for label in some})
    number = {label: i for i, label in enumerate(labels)}
    rates = sorted({int(hz) for hz in clips.rate_hz if hz})
    low, high = points.min(axis=0), points.max(axis=0)
    scaled = (points - low) / max(float((high - low).max()), 1e-30) * GRID  # one scale: a circle stays one
    indexes = [split.index for split in clips.splits]
    places = zip(clips.split.tolist(), clips.row.tolist(), strict=True)
    similarity = clips.best_similarity.astype(np.float64).round(6)
    return {
        "x": np.round(scaled[:, 0]).astype(int).tolist(),
        "y": np.round(scaled[:, 1]).astype(int).tolist(),
        "role": clips.role.tolist(),
        "rule": [-1 if rule is None else rules[rule] for rule in clips.rule.to_pylist()],
        "rates": rates,
        "rate": [rates.index(hz) if hz else -1 for hz in clips.rate_hz.tolist()],
        "labels": [names.get(label, label) for label in labels],
        "labelled": [[number[label] for label in some] for some in clips.labels],
        "id": clips.ids.to_pylist(),
        "why": list(clips.why),
        "audio": [links.playable(indexes[split], row) or "" for split, row in places],
        "best": _places(clips, clips.best_seed_id).tolist(),
        "similarity": [None if np.isnan(value) else float(value) for value in similarity],
    }


def _places(clips: Shown, ids: Any) -> Int64:
    """The place of each of these ids on the map, −1 where it is not shown."""
    found = pc.index_in(ids, value_set=clips.ids)  # null is not among them
    return np.asarray(found.fill_null(-1).to_numpy(zero_copy_only=False), dtype=np.int64)


def _lines(run: Run, clips: Shown, num_pairs: int) -> dict[str, Any]:
    """The first neighbours of the seeds that are shown, as many per seed as `num_pairs` allows: seed after seed, each
    neighbour's place on the map (−1: not shown) and similarity."""
    table, k = run.neighbours, run.k
    seed_at = _places(clips, table["seed_id"].combine_chunks().take(np.arange(0, len(table), k)))
    rows = np.flatnonzero(seed_at >= 0)
    per_seed = min(k, num_pairs // max(len(rows), 1))
    pairs = (rows[:, None] * k + np.arange(per_seed)).reshape(-1)
    neighbours = table["neighbour_id"].combine_chunks().take(pairs)
    similarity = table["similarity"].to_numpy()[pairs].astype(np.float64).round(6)
    return {
        "lines_per_seed": per_seed,
        "seeds": seed_at[rows].tolist(),
        "neighbours": _places(clips, neighbours).tolist(),
        "similarities": similarity.tolist(),
    }


def _sounds(
    clips: Shown, sound: Sound | None, num_pictures: int, num_sounds: int
) -> tuple[list[int], bytes, dict[int, str]]:
    """(places whose spectrogram follows, the spectrograms as bytes of 0 (loudest) to 255, place -> sound)."""
    if sound is None or max(num_pictures, num_sounds) == 0:
        return [], b"", {}
    order = np.argsort(_PRIORITY[clips.role], kind="stable")[: max(num_pictures, num_sounds)].tolist()
    groups = [[(clips.splits[clips.split[at]].index, int(clips.row[at]))] for at in order]
    pictured, pictures, sounds = [], [], {}
    for number, (at, (wave,)) in enumerate(zip(order, decode(groups, sound), strict=True)):
        if wave is None:
            continue
        if number < num_pictures:
            pictured.append(at)
            pictures.append(spectrogram.alone(wave, *PICTURE).tobytes())
        if number < num_sounds:
            sounds[at] = mp3(wave)
    return pictured, b"".join(pictures), sounds

"""A map from a run's folder to its files: RUN_DIR/atlas/ with atlas.parquet, atlas.json and index.html.

In: the settings and a finished run. The run's own files stay as they are. Each file appears complete or not at all, the
page last.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from balance import __version__
from balance.atlas import page
from balance.atlas.clips import SEED, Shown, shown
from balance.atlas.projection import Projected, project, resolve
from balance.config import AtlasSettings
from balance.data.config import MediaSource
from balance.data.ontology import read_ontology
from balance.records import Float32
from balance.report.listening import Links
from balance.report.sound import Sound
from balance.results.read_run import Run
from balance.results.run_splits import open_splits
from balance.runtime import files

log = logging.getLogger(__name__)

_QUEUE_BYTES = 1 << 28
_CLIP_TIMEOUT_S = 60.0
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("role", pa.string()),
        ("rule", pa.string()),
        ("labels", pa.string()),
        ("x", pa.float32()),
        ("y", pa.float32()),
        ("num_seeds", pa.int32()),
        ("best_seed_id", pa.string()),
        ("best_similarity", pa.float32()),
        ("neighbours", pa.list_(pa.struct([("id", pa.string()), ("similarity", pa.float32())]))),
        ("audio", pa.string()),
    ]
)


def run(settings: AtlasSettings, folder: str) -> Path:
    """The page of the map. Raises UserError, OSError."""
    given = Run.read(folder)
    method = resolve(settings.atlas.projection)
    clips = shown(given, open_splits(given), settings.atlas.max_clips)
    _tell_shown(clips, settings.atlas.max_clips)
    log.info("projecting %s clips with %s", f"{len(clips):,}", method.value)
    projected = project(clips.vectors, method, given.facts.rng_seed)
    out = given.path / "atlas"
    out.mkdir(exist_ok=True)
    with files.atomic(out / "atlas.parquet") as file:
        pq.write_table(table(given, clips, projected.points), file, compression="zstd")
    source = given.facts.source
    held = page.write(
        out / "index.html",
        given,
        clips,
        projected,
        names=read_ontology(source.ontology, source.root)[0],
        links=Links.to(source.media, settings.report.media_base or _media_base(given), out.resolve(), inside=1),
        sound=_sound(given, settings, clips),
        config=settings.atlas,
        num_embedded=settings.report.embed_audio,
    )
    files.write_json(out / "atlas.json", _about(given, clips, projected, held))
    log.info("the map: %s", os.path.relpath(out / "index.html"))
    log.info("  open it in a browser; the same as a table: atlas.parquet")
    return out / "index.html"


def table(given: Run, clips: Shown, points: Float32) -> pa.Table:
    """The content of atlas.parquet, a row per clip."""
    mask = np.isnan(clips.best_similarity)
    columns = [
        clips.ids,
        pa.array(page.role_names(clips)),
        clips.rule,
        pa.array([";".join(labels) for labels in clips.labels], pa.string()),
        pa.array(points[:, 0]),
        pa.array(points[:, 1]),
        pa.array(clips.num_seeds.astype(np.int32), mask=~page.is_of_pool(clips)),
        clips.best_seed_id,
        pa.array(clips.best_similarity, mask=mask),
        _neighbours(given, clips),
        clips.audio,
    ]
    return pa.table(columns, schema=SCHEMA)


def _neighbours(given: Run, clips: Shown) -> Any:
    """Of each seed its exact neighbours, best first; null of other clips."""
    found = given.neighbours.combine_chunks()
    k = given.k
    seed_ids = found["seed_id"].take(pa.array(np.arange(0, len(found), k))).combine_chunks()
    at = pa.compute.index_in(clips.ids, value_set=seed_ids)
    at = np.asarray(at.fill_null(-1).to_numpy(), dtype=np.int64)
    is_seed = (clips.role == SEED) & (at >= 0)
    rows = (at[is_seed][:, None] * k + np.arange(k)).reshape(-1)
    some = found.take(pa.array(rows))
    kind = SCHEMA.field("neighbours").type.value_type
    pairs = pa.StructArray.from_arrays(
        [some["neighbour_id"].combine_chunks(), some["similarity"].combine_chunks()], fields=list(kind)
    )
    offsets = np.concatenate([[0], np.cumsum(np.where(is_seed, k, 0))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pairs, mask=pa.array(~is_seed))


def _media_base(given: Run) -> str | None:
    """`report.media_base` of the run, so that map and report find the sound in the same place."""
    base = given.manifest["config"].get("report", {}).get("media_base")
    return base if isinstance(base, str) else None


def _sound(given: Run, settings: AtlasSettings, clips: Shown) -> Sound | None:
    source = given.facts.source
    if not pa.compute.any(pa.compute.not_equal(clips.audio, "")).as_py():  # own vectors without an index
        return None
    media = MediaSource(root=source.media, format=source.format, columns=source.columns)
    return Sound(media, settings.num_decoders, _QUEUE_BYTES, _CLIP_TIMEOUT_S)


def _tell_shown(clips: Shown, max_clips: int) -> None:
    counts = page.counts(clips)
    log.info("shown: %s", ", ".join(f"{n:,} of {clips.there[role]:,} {role}" for role, n in counts.items()))
    for role in ("seed", "neighbour", "dropped"):
        if counts.get(role, 0) < clips.there[role]:
            log.warning(
                "warning: atlas.max_clips=%d has no room for every %s clip: a seeded sample is shown", max_clips, role
            )


def _about(given: Run, clips: Shown, projected: Projected, held: page.Held) -> dict[str, Any]:
    counts = page.counts(clips)
    return {
        "version": __version__,
        "k": given.k,
        "method": projected.method,
        "seed": given.facts.rng_seed,
        "parameters": projected.parameters,
        "clips": {role: {"shown": counts[role], "there": clips.there[role]} for role in counts},
        "spectrograms": held.num_pictures,
        "sounds": held.num_sounds,
        "lines_per_seed": held.lines_per_seed,
    }

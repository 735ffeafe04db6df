"""Two honest looks at the store: have the media changed under it, and what did a low precision cost?"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from balance.audio.decoder_process import Job
from balance.audio.decoders import Decoded, DecoderPool
from balance.data import media
from balance.embed import worker
from balance.embed.parts import PART_CLIPS, plan_parts
from balance.embed.store import Store
from balance.encoders.precision import Precision
from balance.errors import UserError
from balance.records import Float32, Float64, Index, Int64, Split
from balance.runtime import files

log = logging.getLogger(__name__)

_REUSED_CLIPS = 64
_SAMPLE_CLIPS = (256, 1024)  # seeds, pool clips on CUDA; a sixteenth on a CPU
_OVERLAP_K = 10
_COSINE_WARNING, _OVERLAP_WARNING = 0.9999, 0.95


def check_reused(store: Store, indexes: Mapping[str, Index], task: worker.EmbedTask, *, seed: int) -> None:
    """Decode a seeded sample of stored clips again; UserError if any has other samples than when it was embedded.

    Only clips whose files are there are looked at: a cache without media stays usable.
    """
    paths = pa.concat_arrays([index.paths for index in indexes.values()])
    ids = pa.concat_arrays([index.ids for index in indexes.values()])
    offsets, sizes = (np.concatenate(x) for x in zip(*(index.places() for index in indexes.values()), strict=True))
    rows = store.rows(paths)
    reused = np.flatnonzero(rows >= 0)
    rng = np.random.default_rng(seed)
    root, form = Path(task.decode.media_root), task.decode.format
    candidates = rng.permutation(reused)[: 16 * _REUSED_CLIPS]
    there = (row for row in candidates if (root / media.container(form, paths[int(row)].as_py())).exists())
    chosen = np.sort(np.fromiter(itertools.islice(there, _REUSED_CLIPS), dtype=np.int64))
    if not len(chosen):
        return
    jobs = (
        (row, Job(ids[int(row)].as_py(), paths[int(row)].as_py(), int(offsets[row]), int(sizes[row]))) for row in chosen
    )
    known = store.facts(rows[chosen]).pcm_sha1
    changed: list[str] = []
    with DecoderPool(
        task.decode, jobs, num_workers=min(task.num_workers, 8), clip_timeout_s=task.clip_timeout_s
    ) as decoders:
        for (_, job, result), sha1 in zip(decoders.results(), known, strict=True):
            if not isinstance(result, Decoded) or result.pcm_sha1 != sha1.tobytes():
                changed.append(job.path)
    if changed:
        raise UserError(
            f"{len(changed)} of {len(chosen)} media files looked at again are not what was embedded (as {changed[0]})."
            f"\nThe store {store.directory.name} is of other files: type refresh=true to embed anew"
        )


@dataclass(frozen=True, slots=True)
class PrecisionReport:
    """A sample embedded in float32 beside the store's precision: cosine of the two embeddings of a clip (mean, least),
    and the mean share of a seed's 10 nearest pool clips of the sample that both have."""

    precision: str
    num_seeds: int
    num_pool: int
    cosine_mean: float
    cosine_min: float
    overlap_at_10: float


def measure_precision(task: worker.EmbedTask, seeds: Split, pool: Split, *, seed: int) -> PrecisionReport | None:
    """The store's precision report; measured once, when the store first has rows, and kept as `precision.json`."""
    kept = task.directory / "precision.json"
    if kept.is_file():
        report = PrecisionReport(**json.loads(kept.read_text("utf-8")))
    else:
        measured = _measure(task, seeds, pool, seed)
        if measured is None:
            log.warning("the cost of precision %s is unknown: the sample's media are not there", task.precision.value)
            return None
        report = measured
        with contextlib.suppress(OSError):  # a colleague's finished store may be read-only: measured again next time
            files.write_json(kept, asdict(report))
    log.info(
        "precision %s beside float32 on a sample: cosine %.6f (least %.6f), overlap@10 of the neighbours %.3f",
        report.precision,
        report.cosine_mean,
        report.cosine_min,
        report.overlap_at_10,
    )
    if report.cosine_mean < _COSINE_WARNING or report.overlap_at_10 < _OVERLAP_WARNING:
        log.warning(
            "precision %s changes the neighbours (cosine below %s or overlap@10 below %s); type "
            "encoder.precision=float32 or tf32",
            report.precision,
            _COSINE_WARNING,
            _OVERLAP_WARNING,
        )
    return report


def _measure(task: worker.EmbedTask, seeds: Split, pool: Split, seed: int) -> PrecisionReport | None:
    rng = np.random.default_rng(seed)
    share = 1 if task.device.startswith("cuda") else 16
    samples: list[tuple[str, Index, Int64]] = []
    picked: list[Float32] = []
    for name, split, num_clips in zip(("seeds", "pool"), (seeds, pool), _SAMPLE_CLIPS, strict=True):
        size = min(num_clips // share, len(split.embedded))
        at = np.sort(rng.choice(len(split.embedded), size, replace=False)) if size else np.empty(0, np.int64)
        samples.append((name, split.index, split.embedded[at]))
        picked.append(split.vectors.take(at))
    with tempfile.TemporaryDirectory() as folder:
        reference = dataclasses.replace(
            task,
            directory=Path(folder),
            precision=Precision.float32,
            plan=plan_parts(samples, PART_CLIPS["cuda"]),
        )
        worker.embed(reference, lambda _: None)
        exact = Store(Path(folder))
        rows = [exact.rows(index.paths.take(pa.array(at))) for _, index, at in samples]
        if not all(len(r) and (r >= 0).all() for r in rows):
            return None
        full = [exact.vectors(r).read(0, len(r)) for r in rows]
    ours, theirs = [_unit(x) for x in picked], [_unit(x) for x in full]
    cosines = np.concatenate([np.einsum("ij,ij->i", a, b) for a, b in zip(ours, theirs, strict=True)])
    k = min(_OVERLAP_K, len(ours[1]))
    near = [np.argsort(-(x[0] @ x[1].T), axis=1, kind="stable")[:, :k] for x in (ours, theirs)]
    overlap = np.mean([len(set(a) & set(b)) / k for a, b in zip(near[0].tolist(), near[1].tolist(), strict=True)])
    return PrecisionReport(
        task.precision.value, len(ours[0]), len(ours[1]), float(cosines.mean()), float(cosines.min()), float(overlap)
    )


def _unit(rows: Float32) -> Float64:
    wide = rows.astype(np.float64)
    norm = np.linalg.norm(wide, axis=1, keepdims=True)
    return wide / np.where(norm > 0, norm, 1.0)

"""Honest looks at a store: have the media changed under it, and what did a low precision cost?

In: the store, the inventories of the splits, the task that embeds. Out: clips in doubt told apart by decoding them, an
error where a sample of what is reused is of other files, figures of a precision. Every look decodes, none but the last
encodes: a copied data set costs a decoding.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from balance.audio.decoder_process import Job
from balance.audio.decoders import Decoded, DecoderPool
from balance.embed import worker
from balance.embed.inventory import Inventory
from balance.embed.parts import PART_CLIPS, ToEmbed, plan_parts
from balance.embed.store import Store
from balance.embed.store_files import write_confirmed
from balance.encoders import conformance
from balance.encoders.base import WaveformEncoder
from balance.encoders.device import own_device
from balance.encoders.precision import Precision
from balance.errors import UserError
from balance.records import Float32, Float64, Int64, Split
from balance.runtime import files
from balance.runtime.remote import AnyPath
from balance.runtime.terminal import Stage

log = logging.getLogger(__name__)

_REUSED_CLIPS = 64
_COMPARED_AT_ONCE = 16_384  # clips whose comparison is written down together
_SAMPLE_CLIPS = (256, 1024)  # seeds, pool clips on CUDA; a sixteenth on a CPU
_OVERLAP_K = 10
_COSINE_WARNING, _OVERLAP_WARNING = 0.9999, 0.95


def compare_in_doubt(store: Store, inventory: Inventory, task: worker.EmbedTask) -> Inventory:
    """Decode the clips whose files have another modification time, and compare with what was embedded.

    What is the same is written down beside the parts, where they can be written, and is in doubt no longer.
    """
    rows = np.flatnonzero(inventory.in_doubt)
    if not len(rows):
        return inventory
    log.info(
        "%s: %s files have another modification time than when they were embedded: decoding them to compare",
        inventory.split,
        f"{len(rows):,}",
    )
    is_same = np.zeros(len(inventory.index), dtype=bool)
    with Stage("comparing", len(rows)) as stage:
        for at in range(0, len(rows), _COMPARED_AT_ONCE):
            some = rows[at : at + _COMPARED_AT_ONCE]
            known = store.facts(inventory.rows[some]).pcm_sha1
            found = _decode_again(task, inventory, some, task.num_workers)
            for row, sha1, samples in zip(some, known, found, strict=True):
                is_same[row] = samples == sha1.tobytes()
                stage.advance()
            same = is_same[some]
            with contextlib.suppress(OSError):  # a colleague's store may be read-only: compared again next time
                paths = inventory.index.paths.take(pa.array(some[same]))
                write_confirmed(task.directory, paths, inventory.stamps[some[same]], known[same])
    log.info("%s: %s of them have the samples that were embedded", inventory.split, f"{is_same.sum():,}")
    return inventory.compared(is_same)


def check_reused(store: Store, inventories: Sequence[Inventory], task: worker.EmbedTask, *, seed: int) -> None:
    """Decode a seeded sample of stored clips again; UserError if any has other samples than when it was embedded, or
    cannot be decoded now.

    Only clips whose files are there are looked at: a cache without media stays usable.
    """
    reused = np.concatenate(
        [
            np.stack([np.full(len(rows), number), rows], axis=1)
            for number, one in enumerate(inventories)
            for rows in [np.flatnonzero((one.rows >= 0) & (one.stamps[:, 0] >= 0))]
        ]
    )
    chosen = np.sort(np.random.default_rng(seed).permutation(len(reused))[:_REUSED_CLIPS])
    changed: list[str] = []
    unread: list[str] = []
    for number, one in enumerate(inventories):
        rows = reused[chosen][reused[chosen, 0] == number, 1]
        known = store.facts(one.rows[rows]).pcm_sha1
        for row, sha1, samples in zip(rows, known, _decode_again(task, one, rows, 8), strict=True):
            path = one.index.paths[int(row)].as_py()
            if isinstance(samples, str):
                unread.append(f"{path}: {samples}")
            elif samples != sha1.tobytes():
                changed.append(path)
    if changed:
        raise UserError(
            f"{len(changed)} of {len(chosen)} media files looked at again are not what was embedded (as {changed[0]})."
            f"\nThe store {store.directory.name} is of other files: type refresh=true to embed anew"
        )
    if unread:
        raise UserError(
            f"{len(unread)} of {len(chosen)} media files looked at again could be decoded when they were embedded, and "
            f"cannot be now ({unread[0]}).\nLook at these files; where it is the time limit, type clip_timeout_s=600"
        )


def _decode_again(task: worker.EmbedTask, inventory: Inventory, rows: Int64, num_workers: int) -> Iterator[bytes | str]:
    """The pcm_sha1 of the clip of each of these rows as its file is now; why, in words, where it cannot be decoded."""
    if not len(rows):
        return
    some = inventory.index.take(rows)
    offsets, sizes = some.places()
    sizes = np.where(offsets < 0, inventory.stamps[rows, 0], sizes)
    jobs = (
        (None, Job(*clip))
        for clip in zip(some.ids.to_pylist(), some.paths.to_pylist(), offsets.tolist(), sizes.tolist(), strict=True)
    )
    settings = dataclasses.replace(task.decode, windows=False)  # the facts alone: nothing is resampled
    with DecoderPool(
        settings, jobs, num_workers=min(task.num_workers, num_workers), clip_timeout_s=task.clip_timeout_s
    ) as decoders:
        for _, _, result in decoders.results():
            yield result.pcm_sha1 if isinstance(result, Decoded) else result.detail


def measure_conformance(task: worker.EmbedTask) -> dict[str, Any] | None:
    """Whether the plan's encoder gives a clip the same embedding in any company: the figures, for `meta.json`.

    Up to 8 clips of the plan are decoded; None where none can be. UserError where it does not, unless
    `encoder.allow_variant` makes that a warning.
    """
    encoder = task.encoder
    assert isinstance(encoder, WaveformEncoder)
    windows = _some_windows(task)
    if not windows:
        return None
    model = encoder.source.build(own_device(task.device), task.precision)
    found = conformance.measure(model, windows, precision=task.precision, pads=encoder.pads)
    for note in found.notes:
        log.warning("%s: %s", encoder.name, note)
    if found.wrong:
        words = (
            f"{encoder.name} does not give a clip the same embedding in any company (relative difference, at most "
            f"{found.tolerance:g} is allowed): {'; '.join(found.wrong)}"
        )
        if not encoder.allow_variant:
            raise UserError(f"{words}.\nMend it, or type encoder.allow_variant=true to embed one length at a time")
        log.warning("%s; embedding one length at a time (encoder.allow_variant=true)", words)
    return {
        "relative_difference": {test: x if np.isfinite(x) else None for test, x in found.differences.items()},
        "tolerance": found.tolerance,
        "num_clips": found.num_clips,
        "faults": list(found.faults),
        "allow_variant": encoder.allow_variant,
    }


def _some_windows(task: worker.EmbedTask) -> list[Float32]:
    """The first window of up to 8 clips, from the whole plan; some of those asked for may be undecodable."""
    last = len(task.plan.names) - 1
    jobs = [job for part in sorted({0, last // 2, last}) for job in task.plan.part(part).jobs()]
    at = np.unique(np.linspace(0, len(jobs) - 1, 2 * conformance.NUM_CLIPS).round().astype(int))
    windows: list[Float32] = []
    with DecoderPool(
        task.decode, ((None, jobs[i]) for i in at), num_workers=task.num_workers, clip_timeout_s=task.clip_timeout_s
    ) as decoders:
        is_next = True  # clip, not another piece of one
        for _, _, result in decoders.results():
            if isinstance(result, Decoded):
                if is_next:
                    windows.append(np.array(result.samples[: len(result.samples) // result.num_windows]))
                is_next = result.is_last
            if len(windows) == conformance.NUM_CLIPS:
                break
    return windows


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
    report = _read_report(kept)
    if report is None:
        report = _measure(task, seeds, pool, seed)
        if report is None:
            log.warning("the cost of precision %s is unknown: the sample's media are not there", task.precision.value)
            return None
        with contextlib.suppress(OSError):  # a colleague's finished store may be read-only: measured again next time
            files.write_json(kept, asdict(report) | {"checksum": _checksum(report)})
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


def _read_report(file: AnyPath) -> PrecisionReport | None:
    """What was measured earlier; None where nothing was, or where the file is damaged."""
    try:
        values = json.loads(file.read_bytes())
        checksum = values.pop("checksum")
        report = PrecisionReport(**values)
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError):
        return None
    return report if checksum == _checksum(report) else None


def _checksum(report: PrecisionReport) -> str:
    return hashlib.sha256(json.dumps(asdict(report)).encode()).hexdigest()


def _measure(task: worker.EmbedTask, seeds: Split, pool: Split, seed: int) -> PrecisionReport | None:
    rng = np.random.default_rng(seed)
    device = own_device(task.device)
    share = 1 if device.type == "cuda" else 16
    samples: list[ToEmbed] = []
    picked: list[Float32] = []
    for name, split, num_clips in zip(("seeds", "pool"), (seeds, pool), _SAMPLE_CLIPS, strict=True):
        size = min(num_clips // share, len(split.embedded))
        at = np.sort(rng.choice(len(split.embedded), size, replace=False)) if size else np.empty(0, np.int64)
        samples.append(ToEmbed(name, split.index, split.embedded[at]))
        picked.append(split.vectors.take(at))
    with tempfile.TemporaryDirectory() as folder:
        reference = dataclasses.replace(
            task,
            directory=Path(folder),
            device=str(device),
            precision=Precision.float32,
            plan=plan_parts(samples, PART_CLIPS["cuda"]),
        )
        worker.embed(reference, lambda _: None)
        exact = Store(Path(folder))
        rows = [exact.rows(one.index.paths.take(pa.array(one.rows))) for one in samples]
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

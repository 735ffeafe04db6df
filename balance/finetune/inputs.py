"""Clips -> the network's inputs, made once and kept in one file of the cache, so that a step reads and never decodes.

In: clips of the index and a network's `prepare`; out: `Inputs`, a memory map of float16 with a row per clip, filled in
chunks that resume. A clip that cannot be decoded any more stays zero and is counted. The price: room on the disk, said
first: 10 s of 64 bands are 128 KB, so 200,000 clips are 26 GB. float16 holds log-mel to 0.004.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import scipy.signal

from balance.audio.decoder_process import Job
from balance.audio.decoders import Decoded, DecoderPool, channel_settings
from balance.data.config import MediaSource
from balance.errors import UserError
from balance.finetune.networks import RATE_HZ, Network
from balance.records import Bool, Float32, Index, Int64, Strings
from balance.runtime import files, locks
from balance.runtime.threads import Cores
from balance.runtime.wording import counted, size

log = logging.getLogger(__name__)

CHUNK = 1024  # clips between two notes of what is done
_WAITING, _DONE, _UNREADABLE = 0, 1, 2

Float16 = npt.NDArray[np.float16]
State = npt.NDArray[np.int8]


@dataclass(frozen=True, slots=True)
class Media:
    """Where the clips' bytes lie and how they are decoded."""

    source: MediaSource
    num_workers: int
    queue_bytes: int
    clip_timeout_s: float


@dataclass(frozen=True, slots=True, eq=False)
class Clips:
    """Which clips: ids, paths: Arrow string arrays (n,); offsets, sizes: (n,) int64 places in containers."""

    ids: Strings
    paths: Strings
    offsets: Int64
    sizes: Int64

    @staticmethod
    def of(indexes: Sequence[Index]) -> Clips:
        """The rows of several indexes, one index after another."""
        offsets, sizes = zip(*(index.places() for index in indexes), strict=True)
        ids, paths = (pa.concat_arrays([_one(getattr(x, name)) for x in indexes]) for name in ("ids", "paths"))
        return Clips(ids, paths, np.concatenate(offsets), np.concatenate(sizes))

    def __len__(self) -> int:
        return len(self.ids)

    def job(self, row: int) -> Job:
        return Job(self.ids[row].as_py(), self.paths[row].as_py(), int(self.offsets[row]), int(self.sizes[row]))


def _one(column: Strings) -> Strings:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """values: (n, *shape) float16, mapped; readable: (n,) whether the clip could be decoded; digest: of the clips and
    the network's key."""

    values: Float16
    readable: Bool
    digest: str

    def batch(self, rows: Int64) -> Float32:
        """(len(rows), *shape) float32"""
        return np.stack([self.values[row] for row in rows]).astype(np.float32)

    def moments(self, rows: Int64) -> tuple[float, float]:
        """Mean and standard deviation of all numbers of these rows."""
        sums = np.array([(len(x), x.sum(), np.square(x).sum()) for x in map(self._flat, rows)])
        count, total, squares = sums.sum(axis=0)
        mean = total / count
        return float(mean), float(math.sqrt(max(squares / count - mean**2, 1e-12)))

    def _flat(self, row: int) -> npt.NDArray[np.float64]:
        values: npt.NDArray[np.float64] = self.values[row].astype(np.float64).ravel()
        return values


def make(
    clips: Clips, network: Network, media: Media, max_duration_s: float, folder: Path, progress: Callable[[int], None]
) -> Inputs:
    """The inputs of these clips, made as far as they are not there. progress: called with the number of clips done.

    UserError: the disk is full, or no clip can be decoded; OSError.
    """
    digest = hashlib.sha256(f"{network.key} {max_duration_s} {media.source.root}\n".encode())
    for column in (clips.ids, clips.paths):
        digest.update("\n".join(column.to_pylist()).encode("utf-8", "surrogateescape") + b"\0")
    key = digest.hexdigest()[:24]
    folder.mkdir(parents=True, exist_ok=True)
    shape = (len(clips), *network.shape)
    finished, beside = folder / f"{key}.float16", folder / f"{key}.npz"
    kept = files.read_npz(beside)
    if kept is None or not _has_size(finished, shape):
        lock = locks.acquire(folder / f"{key}.lock")
        if lock is None:
            raise UserError(f"another job makes the same inputs in {folder}: wait for it, then type the same again")
        with lock:
            log.info("inputs of %s: %s in %s", counted(len(clips), "clip"), size(2 * math.prod(shape)), folder)
            partial = folder / f"{key}.partial"
            state = _make(partial, shape, clips, network, media, max_duration_s, progress)
            files.write_npz(beside, kept := {"state": state})
            files.replace(partial, finished)
            partial.with_suffix(".partial.npz").unlink()
    readable = kept["state"] == _DONE
    if not readable.any():
        raise UserError(f"none of the {len(clips):,} clips can be decoded: are the media still at {media.source.root}?")
    if not readable.all():
        log.warning("%d of %d clips cannot be decoded: they are left out", int((~readable).sum()), len(clips))
    return Inputs(np.memmap(finished, dtype=np.float16, mode="r", shape=shape), readable, key)


def _make(
    path: Path,
    shape: tuple[int, ...],
    clips: Clips,
    network: Network,
    media: Media,
    max_duration_s: float,
    progress: Callable[[int], None],
) -> State:
    """Fill the file chunk by chunk, from where it was left; what became of each clip."""
    done = path.with_suffix(".partial.npz")
    kept = files.read_npz(done) if _has_size(path, shape) else None
    state = np.zeros(shape[0], dtype=np.int8) if kept is None else kept["state"].astype(np.int8)
    if kept is None:
        _take_room(path, shape)
    values = np.memmap(path, dtype=np.float16, mode="r+", shape=shape)
    waiting = np.flatnonzero(state == _WAITING)
    for first in range(0, len(waiting), CHUNK):
        chunk = waiting[first : first + CHUNK]
        state[chunk] = _fill(values, clips, chunk, network, media, max_duration_s)
        values.flush()
        files.write_npz(done, {"state": state})
        progress(int((state != _WAITING).sum()))
    return state


def _has_size(path: Path, shape: tuple[int, ...]) -> bool:
    return path.is_file() and path.stat().st_size == 2 * math.prod(shape)


def _take_room(path: Path, shape: tuple[int, ...]) -> None:
    """The whole size at once, so that a full disk is said before work begins."""
    num_bytes = 2 * math.prod(shape)
    try:
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, num_bytes)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise UserError(
            f"{path.parent} has no room for {size(num_bytes)} of inputs ({error.strerror}): type "
            "cache_dir=/a/larger/disk, fewer neighbours (finetune.k) or a shorter finetune.max_duration_s"
        ) from error


def _fill(values: Float16, clips: Clips, rows: Int64, network: Network, media: Media, max_duration_s: float) -> State:
    """Write the inputs of these rows; what became of each."""
    num_samples = round(max_duration_s * RATE_HZ)
    found = np.full(len(rows), _UNREADABLE, dtype=np.int8)

    def one(job: tuple[int, Float32, int]) -> None:
        at, samples, rate = job
        values[rows[at]] = network.prepare(_fitted(samples, rate, num_samples))
        found[at] = _DONE

    with Cores() as cores:
        batch: list[tuple[int, Float32, int]] = []
        for at, result in enumerate(_decoded(clips, rows, media, max_duration_s)):
            if isinstance(result, Decoded) and len(result.samples):
                batch.append((at, result.samples.copy(), result.sample_rate))
            if len(batch) == 32:
                cores.map(one, batch)
                batch.clear()
        cores.map(one, batch)
    return found


def _decoded(clips: Clips, rows: Int64, media: Media, max_duration_s: float) -> Iterator[object]:
    max_frames = max(1, round(100 * max_duration_s))
    num_workers = max(1, min(media.num_workers, len(rows)))
    settings = channel_settings(media.source, max_frames, media.queue_bytes, num_workers)
    jobs = ((None, clips.job(row)) for row in rows.tolist())
    with DecoderPool(settings, jobs, num_workers=num_workers, clip_timeout_s=media.clip_timeout_s) as decoders:
        for _, _, result in decoders.results():
            yield result


def _fitted(samples: Float32, rate: int, num_samples: int) -> Float32:
    """At RATE_HZ, padded with zeros or cut at the end to this length."""
    if rate != RATE_HZ:
        common = math.gcd(rate, RATE_HZ)
        samples = scipy.signal.resample_poly(samples, RATE_HZ // common, rate // common).astype(np.float32)
    out = np.zeros(num_samples, dtype=np.float32)
    out[: len(samples)] = samples[:num_samples]
    return out

"""What was heard of clips, kept in the cache: facts and features, so that each clip is decoded once for all audits,
and for runs on own vectors, whose clips no encoder hears.

In: keys of clips under one media root. Out: their rows. A part is a file of `embed.store_files` (named by its clips and
its bytes, there completely or not at all), made by whoever holds its lock; a file with another size or modification
time is heard again. Up to MAX_S of a clip are heard, in windows of 10 s every 5 s where it is longer than one. Price:
24 kB per clip of 10 s (50 GB for AudioSet), and about 40 ms of one core.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from balance.audio.decoder_process import Job
from balance.audio.decoders import Decoded, DecoderPool, Undecoded, channel_settings
from balance.curation.judge import MOST_FRAMES
from balance.curation.log_mel import HOP_S, NUM_BANDS, features
from balance.data.config import MediaSource
from balance.embed import store_files
from balance.embed.parts import plan_name
from balance.records import DecodeFailure, Facts, Float32, Index, Int64
from balance.runtime import locks
from balance.runtime.terminal import Stage
from balance.runtime.threads import Cores

log = logging.getLogger(__name__)

VERSION = 1  # of the features: another one hears everything again
MAX_S = 120
PART_CLIPS = 1024  # 24 MB, and less than a minute of 16 cores
WINDOW_S, WINDOW_HOP_S = 10.0, 5.0
STEP_NEPER = 0.002  # of the features as whole numbers: fingerprints hear changes far below what the judges do
_BATCH = 64
_WAIT_S = 2.0
_HEAR_S = 0.04  # of one core of 2026 per clip of 10 s, for the estimate that is printed first
_FACTS = ["id", "path", "reason", "detail", "sample_rate", "num_samples", "rms_db", "pcm_sha1"]
_COLUMNS = {
    "id": pa.string(),
    "path": pa.string(),
    "size_bytes": pa.int64(),
    "time_ns": pa.int64(),
    "sample_rate": pa.int32(),
    "num_samples": pa.int64(),
    "rms_db": pa.float32(),
    "pcm_sha1": pa.binary(20),
    "reason": pa.string(),
    "detail": pa.string(),
    "starts_s": pa.list_(pa.float64()),
    "windows": pa.list_(pa.binary()),
}
_KEYS = ["path", "size_bytes", "time_ns", "reason"]
SCHEMA = pa.schema(list(_COLUMNS.items()))


@dataclass(frozen=True, slots=True, eq=False)
class Heard:
    """A clip's row. reason: why it could not be decoded, "" where it could, with a detail; pcm_sha1: of all its
    samples; starts_s, windows: where each window begins, and its features (frames, NUM_BANDS) float32."""

    pcm_sha1: bytes
    rms_db: float
    seconds: float
    reason: str
    detail: str
    starts_s: tuple[float, ...]
    windows: tuple[Float32, ...]

    @property
    def is_silent(self) -> bool:
        """Only zeros."""
        return not self.reason and self.rms_db == -np.inf

    @property
    def is_part(self) -> bool:
        """Whether it is longer than what was heard."""
        return self.seconds > MAX_S + 0.1


class Sounds:
    """The store of one media root."""

    def __init__(self, cache: Path, media: MediaSource) -> None:
        name = plan_name([str(media.root), media.format.value, media.columns.audio, str(VERSION)])
        self.directory = cache / "sounds" / name
        self._media = media
        self.directory.mkdir(parents=True, exist_ok=True)
        store_files.remove_leftovers(self.directory)
        self._files: list[Path] = []
        self._keys = pa.table({name: pa.array([], _COLUMNS[name]) for name in _KEYS}).append_column(
            "place", pa.array([], pa.int64())
        )
        self.reopen()

    def reopen(self) -> None:
        """Look for new parts: each is checked once. Held in memory are keys and stamps alone."""
        new = sorted(set(self.directory.glob("part-*.arrow")) - set(self._files))
        tables = [self._keys]
        for file in (file for file in new if store_files.is_intact(file)):
            options = pa.ipc.IpcReadOptions(included_fields=[SCHEMA.get_field_index(name) for name in _KEYS])
            table = pa.ipc.open_file(str(file), options=options).read_all().select(_KEYS)
            place = len(self._files) * PART_CLIPS + np.arange(len(table))
            tables.append(table.append_column("place", pa.array(place)))
            self._files.append(file)
        self._keys = pa.concat_tables(tables)

    def places(self, index: Index, stamps: Int64, *, with_failed: bool) -> Int64:
        """Where the row of each clip lies, (n,) int64; −1 where its file, as it is now, was not heard. with_failed:
        whether one that could not be decoded counts as heard."""
        asked = pa.table(
            {
                "path": index.paths.cast(pa.large_string()),
                "size_bytes": stamps[:, 0],
                "time_ns": stamps[:, 1],
                "at": np.arange(len(index)),
            }
        )
        found = np.full(len(index), -1, dtype=np.int64)
        keys = self._keys.set_column(0, "path", self._keys["path"].cast(pa.large_string()))
        both = asked.join(keys, ["path", "size_bytes", "time_ns"], join_type="inner")
        failed = pc.not_equal(both["reason"], "")
        for some in ([failed] if with_failed else []) + [pc.invert(failed)]:  # a clip decoded later counts as decoded
            chosen = both.filter(some)
            found[chosen["at"].to_numpy()] = chosen["place"].to_numpy()
        return found

    def read(self, places: Int64) -> Iterator[tuple[int, Heard]]:
        """(which of the places, its row) of those that were heard, part by part."""
        part = places // PART_CLIPS
        for number in np.unique(part[places >= 0]).tolist():
            table = pa.ipc.open_file(str(self._files[number])).read_all()
            for at in np.flatnonzero(part == number).tolist():
                yield at, _heard(table.slice(int(places[at]) % PART_CLIPS, 1).to_pylist()[0])

    def facts(self, places: Int64) -> tuple[Facts, list[DecodeFailure]]:
        """Of the clips at these places, (n,), and why some could not be decoded. What was not heard has the facts of a
        silent clip, which is nobody's copy."""
        rate, size = np.zeros(len(places), dtype=np.int32), np.zeros(len(places), dtype=np.int64)
        rms_db = np.full(len(places), -np.inf, dtype=np.float32)
        sha1 = np.zeros((len(places), 20), dtype=np.uint8)
        failures = []
        options = pa.ipc.IpcReadOptions(included_fields=[SCHEMA.get_field_index(name) for name in _FACTS])
        part = places // PART_CLIPS
        for number in np.unique(part[places >= 0]).tolist():
            at = np.flatnonzero(part == number)
            table = pa.ipc.open_file(str(self._files[number]), options=options).read_all().take(places[at] % PART_CLIPS)
            for i, row in zip(at.tolist(), table.to_pylist(), strict=True):
                if row["reason"]:
                    failures.append(DecodeFailure(row["id"], row["path"], row["reason"], row["detail"]))
                    continue
                rate[i], size[i], rms_db[i] = row["sample_rate"], row["num_samples"], row["rms_db"]
                sha1[i] = np.frombuffer(row["pcm_sha1"], dtype=np.uint8)
        return Facts(rate, size, rms_db, sha1), failures

    def hear(
        self, index: Index, stamps: Int64, rows: Int64, decoders: Decoders, *, again: bool
    ) -> Iterator[tuple[int, int]]:
        """Decode these rows of an index and write them down; (clips, failures) of each part, when it is there.
        again: also what another audit has written since."""
        offsets, sizes = index.places()
        ids, paths = index.ids.take(pa.array(rows)).to_pylist(), index.paths.take(pa.array(rows)).to_pylist()
        clips = [
            (Job(clip_id, path, int(offsets[row]), int(sizes[row])), stamps[row])
            for clip_id, path, row in zip(ids, paths, rows.tolist(), strict=True)
        ]
        left = [clips[at : at + PART_CLIPS] for at in range(0, len(clips), PART_CLIPS)]
        while left:
            waiting = []
            for part in left:
                plan = plan_name([f"{job.path} {stamp[0]} {stamp[1]}" for job, stamp in part])
                lock = locks.acquire(store_files.lock_path(self.directory, plan))
                if lock is None:  # another audit hears these clips now
                    waiting.append(part)
                    continue
                num_failed = 0
                with lock:
                    if again or not store_files.part_done(self.directory, plan):
                        num_failed = self._write(plan, part, decoders)
                yield len(part), num_failed
            left = waiting
            if left:
                time.sleep(_WAIT_S)
        self.reopen()

    def _write(self, plan: str, part: Sequence[tuple[Job, Int64]], decoders: Decoders) -> int:
        """The number of clips that could not be decoded."""
        columns: dict[str, list[Any]] = {name: [] for name in _COLUMNS}
        heard = decoders.hear(self._media, [job for job, _ in part])
        for (job, stamp), facts in zip(part, heard, strict=True):
            row = {"id": job.id, "path": job.path, "size_bytes": int(stamp[0]), "time_ns": int(stamp[1]), **facts}
            for name, value in row.items():
                columns[name].append(value)
        arrays = [pa.array(columns[name], kind) for name, kind in _COLUMNS.items()]
        store_files.write_batch(self.directory, "part", plan, pa.record_batch(arrays, schema=SCHEMA))
        return sum(map(bool, columns["reason"]))


class Wanted(Protocol):
    """Clips that are to be heard. stamps: (n, 2) of the media files, −1 where there is none."""

    @property
    def index(self) -> Index: ...

    @property
    def stamps(self) -> Int64: ...


def hear_all(
    what: str, clips: Sequence[tuple[Sounds, Wanted]], decoders: Decoders, *, again: bool, compare_s: float = 0.0
) -> None:
    """Decode what was not heard before. what: that needs it, for the log; again: also what could not be decoded;
    compare_s: seconds of one core that follow, for the estimate."""

    def left(sounds: Sounds, one: Wanted) -> Int64:
        places = sounds.places(one.index, one.stamps, with_failed=not again)
        return np.flatnonzero((places < 0) & (one.stamps[:, 0] >= 0))

    num_todo = sum(len(left(sounds, one)) for sounds, one in clips)
    num_there = sum(int((one.stamps[:, 0] >= 0).sum()) for _, one in clips)
    log.info(
        "%s: %s clips to decode, %s known from earlier audits, about %.1f min",
        what,
        f"{num_todo:,}",
        f"{num_there - num_todo:,}",
        (num_todo * _HEAR_S + compare_s) / decoders.num_workers / 60,
    )
    with Stage("decoding", num_todo) as stage:
        num_failed = 0
        for sounds, one in clips:  # without those that an earlier one has too
            for num_done, failed in sounds.hear(one.index, one.stamps, left(sounds, one), decoders, again=again):
                num_failed += failed
                stage.failed(num_failed)
                stage.advance(num_done)


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoders:
    """How clips are decoded: processes, bytes between them and this one, seconds after which a clip is given up."""

    num_workers: int
    queue_bytes: int
    clip_timeout_s: float

    def hear(self, media: MediaSource, jobs: Sequence[Job]) -> Iterator[dict[str, Any]]:
        """The columns of each clip that follow from its sound, in order."""
        num_workers = min(self.num_workers, len(jobs))
        settings = channel_settings(media, 100 * MAX_S, self.queue_bytes, num_workers)
        todo = ((None, job) for job in jobs)
        with (
            DecoderPool(settings, todo, num_workers=num_workers, clip_timeout_s=self.clip_timeout_s) as pool,
            Cores() as cores,
        ):
            results = (_copied(result) for _, _, result in pool.results())
            while batch := list(itertools.islice(results, _BATCH)):
                yield from cores.map(_columns, batch)


def _copied(result: Decoded | Undecoded) -> tuple[Decoded | Undecoded, Float32]:
    """With its samples, which the next result overwrites."""
    return result, result.samples.copy() if isinstance(result, Decoded) else np.empty(0, dtype=np.float32)


def _columns(clip: tuple[Decoded | Undecoded, Float32]) -> dict[str, Any]:
    result, samples = clip
    if isinstance(result, Undecoded):
        facts = {"sample_rate": None, "num_samples": None, "rms_db": None, "pcm_sha1": None}
        return {**facts, "reason": result.reason, "detail": result.detail, "starts_s": [], "windows": []}
    starts_s = window_starts_s(len(samples) / result.sample_rate)
    size = int((MOST_FRAMES - 1) * HOP_S * result.sample_rate)
    windows = []
    for start_s in starts_s:
        at = round(start_s * result.sample_rate)
        windows.append(_to_bytes(features(samples[at : at + size], result.sample_rate)))
    return {
        "sample_rate": result.sample_rate,
        "num_samples": result.num_samples,
        "rms_db": result.rms_db,
        "pcm_sha1": result.pcm_sha1,
        "reason": "",
        "detail": result.partial,
        "starts_s": starts_s,
        "windows": windows,
    }


def window_starts_s(seconds: float) -> list[float]:
    """Where the windows of a clip begin: one at 0, and every 5 s while it goes on beyond the last one's end."""
    starts = [0.0]
    while starts[-1] + WINDOW_S + 0.1 < seconds:
        starts.append(starts[-1] + WINDOW_HOP_S)
    return starts


def _to_bytes(log_mel: Float32) -> bytes:
    """In steps of STEP_NEPER about the mean, which no judge looks at."""
    if not len(log_mel):
        return b""
    steps = np.round((log_mel[:MOST_FRAMES] - log_mel.mean()) / STEP_NEPER)
    return bytes(np.clip(steps, -32768, 32767).astype(np.int16).tobytes())


def _heard(row: dict[str, Any]) -> Heard:
    return Heard(
        pcm_sha1=row["pcm_sha1"] or b"",
        rms_db=-np.inf if row["rms_db"] is None else row["rms_db"],
        seconds=row["num_samples"] / row["sample_rate"] if row["sample_rate"] else 0.0,
        reason=row["reason"],
        detail=row["detail"],
        starts_s=tuple(row["starts_s"]),
        windows=tuple(
            np.frombuffer(window, dtype=np.int16).reshape(-1, NUM_BANDS).astype(np.float32) * np.float32(STEP_NEPER)
            for window in row["windows"]
        ),
    )

"""One process's share of embedding: parts of clips -> decoders -> embeddings -> parts in the store_files.

In: an `EmbedTask`, the same for all who work on a plan. Out: its parts in the store, and reports. Decoding, host copies
and the forward pass overlap: decoder processes run ahead through the list of parts, this process consumes their results
in order, and a thread writes what is finished. Who makes which part is decided by locks beside the parts, alike between
the processes of a job and between jobs. The price of parts as the unit: a killed run redoes its unfinished ones (about
a minute).
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from balance.audio.decoder_process import DecodeSettings, Job
from balance.audio.decoders import Decoded, DecoderPool, Undecoded
from balance.embed import store_files
from balance.embed.batches import Batches, Finished
from balance.embed.parts import Plan
from balance.embed.progress import Progress
from balance.embed.window_batches import WindowBatches
from balance.encoders.base import Encoder, WaveformEncoder
from balance.encoders.precision import Precision
from balance.encoders.vipant import VipAnt
from balance.engine.local import WorkersDied, run_shares
from balance.errors import UserError
from balance.records import DecodeFailure, Facts, Int64
from balance.runtime import locks
from balance.runtime.threads import Cores

_LOOK_AGAIN_S = 1.0  # for parts that another job makes

Report = Callable[[Progress], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedTask:
    """Everything a process needs to embed: picklable, no handles, no models.

    num_workers: decoders; num_threads: of torch, None for as many as it has.
    """

    directory: Path
    plan: Plan
    encoder: Encoder
    device: str
    precision: Precision
    batch_size: int
    decode: DecodeSettings
    num_workers: int
    clip_timeout_s: float
    num_threads: int | None = None


def embed(task: EmbedTask, report: Report) -> None:
    """Make every part of the plan that is not there, sharing with whoever else works on it; returns when all are.

    Raises UserError (out of memory, disk) and whatever `report` raises; finished parts stay.
    """
    if task.num_threads is not None:
        torch.set_num_threads(task.num_threads)
    device = torch.device(task.device)
    with contextlib.ExitStack() as held:
        if device.type == "cuda":
            held.enter_context(torch.cuda.device(device))  # events belong to the current device
        _embed(task, _batches(task, device, held), report)


def _batches(task: EmbedTask, device: torch.device, held: contextlib.ExitStack) -> Batches | WindowBatches:
    """The encoder, built, and what fills its batches. held: closed when they are not used any more."""
    encoder = task.encoder
    if isinstance(encoder, VipAnt):
        model = encoder.build(device, task.precision)
        spread = map if device.type == "cuda" else held.enter_context(Cores()).map
        return Batches(model, encoder, device, task.batch_size, spread=spread)
    assert isinstance(encoder, WaveformEncoder)
    return WindowBatches(encoder.source.build(device, task.precision), encoder, device, task.batch_size)


def embed_on(task: EmbedTask, devices: Sequence[str], report: Report) -> None:
    """`embed` on these devices at once, a process each; `report` is called in this process, once for each part.

    All processes go through the same list of parts; the parts' locks decide who makes which, exactly as between jobs
    on one cache. Raises what `embed` raises.
    """
    reported: set[int] = set()

    def report_once(progress: Progress) -> None:
        if progress.part is not None:
            if progress.part in reported:  # the process that waited for it tells too
                return
            reported.add(progress.part)
        elif progress.by_others:
            return
        report(progress)

    try:
        run_shares(embed, _shares(task, devices), report_once)
    except WorkersDied as died:
        raise UserError(
            f"all encoder workers died ({died}): perhaps memory is short. Finished parts are kept: run the same "
            "command again, with fewer processes (num_processes=1) if need be"
        ) from None
    finally:
        store_files.remove_leftovers(task.directory)  # a killed process's; parts are atomic, its locks stale at once


def _shares(task: EmbedTask, devices: Sequence[str]) -> list[EmbedTask]:
    """The task of each process: decoders and cores divided among them."""
    count = len(devices)
    if count == 1:
        return [dataclasses.replace(task, device=devices[0])]
    num_threads = max(1, torch.get_num_threads() // count)
    return [
        dataclasses.replace(
            task, device=device, num_workers=len(range(i, task.num_workers, count)) or 1, num_threads=num_threads
        )
        for i, device in enumerate(devices)
    ]


def _embed(task: EmbedTask, batches: Batches | WindowBatches, report: Report) -> None:
    left = list(range(len(task.plan.names)))
    while left:
        claimed = _Claims(task, left)
        try:  # around the pool: its threads claim as soon as it is made
            with DecoderPool(
                task.decode, claimed.jobs(), num_workers=task.num_workers, clip_timeout_s=task.clip_timeout_s
            ) as decoders:
                _consume(task, decoders, claimed, batches, report)
        finally:
            claimed.release()
        left = claimed.held_by_others
        for part in claimed.done_by_others:
            clips = int(task.plan.bounds[part + 1] - task.plan.bounds[part])
            report(Progress(num_clips=clips, part=part, by_others=True))
        if left:
            time.sleep(_LOOK_AGAIN_S)  # another job holds them: look again for its part, or its death


class _Claims:
    """Goes through parts in order, taking the lock of each that is not yet made; the decoders pull jobs through it."""

    def __init__(self, task: EmbedTask, parts: Sequence[int]) -> None:
        self._task, self._parts = task, parts
        self._locks: dict[int, locks.Lock] = {}
        self._guard = threading.Lock()
        self._stopped = False
        self.held_by_others: list[int] = []
        self.done_by_others: list[int] = []

    def jobs(self) -> Iterator[tuple[tuple[int, int, int], Job]]:
        """((part, row in it, its number of clips), job) of each claimed part's clips."""
        directory, plan = self._task.directory, self._task.plan
        for part in self._parts:
            name = plan.names[part]
            if store_files.part_done(directory, name):
                self.done_by_others.append(part)
                continue
            with self._guard:
                if self._stopped:
                    return
                lock = locks.acquire(store_files.lock_path(directory, name))
                if lock is None:
                    self.held_by_others.append(part)
                    continue
                self._locks[part] = lock
            if store_files.part_done(directory, name):  # made between the look and the lock
                self.release(part)
                self.done_by_others.append(part)
                continue
            jobs = plan.jobs(part)
            for row, job in enumerate(jobs):
                yield (part, row, len(jobs)), job

    def release(self, part: int | None = None) -> None:
        """Give back one lock, or all and claim no more."""
        with self._guard:
            if part is None:
                self._stopped = True
            for number in list(self._locks) if part is None else [part]:
                self._locks[number].release()  # a signal in here comes back for those that are still listed
                del self._locks[number]


def _consume(
    task: EmbedTask, decoders: DecoderPool, claimed: _Claims, batches: Batches | WindowBatches, report: Report
) -> None:
    """Feed the encoder; a thread waits for a finished part's embeddings and writes them, while the next is decoded."""
    current: _OpenPart | None = None
    written: _OpenPart | None = None
    writing: Future[None] | None = None

    def settle() -> None:
        nonlocal writing
        if writing is not None and written is not None:
            writing.result()
            writing = None
            claimed.release(written.part)
            report(Progress(part=written.part, failures=tuple(written.failures)))

    with ThreadPoolExecutor(1, "part writer") as writer:
        for (part, row, num_clips), job, result in decoders.results():
            if current is None:
                current = _OpenPart(part, task.plan.stamps[int(task.plan.bounds[part]) :][:num_clips])
            if isinstance(result, Undecoded):
                batches.discard()
                current.fail(row, job, result.reason, result.detail)
            else:
                batches.add(result)
                if not result.is_last:
                    continue
                current.add(row, job, result)
            report(Progress(num_clips=1))
            if row + 1 == num_clips:
                settle()  # one at a time bounds the memory
                written, current = current, None
                writing = writer.submit(written.write, task, batches.finish(), batches.made_by())
            elif writing is not None and writing.done():
                settle()
        settle()


@dataclass(slots=True)
class _OpenPart:
    """The facts of a part's decoded clips, in order, until it is written."""

    part: int
    stamps: Int64  # (clips, 2) of the part's media files
    rows: list[int] = field(default_factory=list)  # of the decoded clips in the part
    jobs: list[Job] = field(default_factory=list)
    facts: list[tuple[int, int, float, bytes]] = field(default_factory=list)
    failures: list[DecodeFailure] = field(default_factory=list)
    partial: dict[str, str] = field(default_factory=dict)

    def fail(self, row: int, job: Job, reason: str, detail: str) -> None:
        size_bytes, time_ns = self.stamps[row].tolist()
        self.failures.append(DecodeFailure(job.id, job.path, reason, detail, (size_bytes, time_ns)))

    def add(self, row: int, job: Job, clip: Decoded) -> None:
        self.rows.append(row)
        self.jobs.append(job)
        self.facts.append((clip.sample_rate, clip.num_samples, clip.rms_db, clip.pcm_sha1))
        if clip.partial:
            self.partial[job.path] = clip.partial

    def write(self, task: EmbedTask, finished: Finished, made_by: dict[str, Any]) -> None:
        embeddings = finished.wait()
        finite = np.isfinite(embeddings).all(axis=1)
        for at in np.flatnonzero(~finite):
            self.fail(self.rows[at], self.jobs[at], "not_finite", "the encoder's output is not finite")
        kept = np.flatnonzero(finite)
        facts = [self.facts[i] for i in kept]
        rows = store_files.PartRows(
            ids=[self.jobs[i].id for i in kept],
            paths=[self.jobs[i].path for i in kept],
            embeddings=embeddings[kept],
            facts=Facts(
                np.array([f[0] for f in facts], dtype=np.int32),
                np.array([f[1] for f in facts], dtype=np.int64),
                np.array([f[2] for f in facts], dtype=np.float32),
                np.frombuffer(b"".join(f[3] for f in facts), dtype=np.uint8).reshape(-1, 20),
            ),
            stamps=self.stamps[[self.rows[i] for i in kept]],
            partial={self.jobs[i].path: words for i in kept if (words := self.partial.get(self.jobs[i].path))},
        )
        store_files.write_part(task.directory, task.plan.names[self.part], rows, self.failures, made_by)

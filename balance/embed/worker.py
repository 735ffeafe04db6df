"""One process's share of embedding: parts of clips -> decoders -> embeddings -> parts in the store_files.

In: an `EmbedTask`, the same for all who work on a plan, and parts. Out: its parts in the store, and reports. Decoding,
host copies and the forward pass overlap: decoder processes run ahead through the parts, this process consumes their
results in order, and a thread writes what is finished. Where all see the same parts (engine/local), locks beside them
decide who makes which, alike between the processes of a job and between jobs; what a driver hands out (engine/ray) is
made whoever else holds the lock. The price of parts as the unit: a killed run redoes its unfinished ones (about a
minute).
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from balance.audio.decoder_process import DecodeSettings, Job
from balance.audio.decoders import Decoded, DecoderPool, Undecoded
from balance.embed import store_files
from balance.embed.batches import Batches, Finished
from balance.embed.parts import Parts, Plan, PlannedPart, plan_parts
from balance.embed.pinned import pinned
from balance.embed.progress import ClipCounts, Progress, Report
from balance.embed.window_batches import WindowBatches
from balance.encoders.base import Encoder, WaveformEncoder
from balance.encoders.precision import Precision
from balance.encoders.vipant import VipAnt
from balance.engine.local import Processes, SharedTasks
from balance.engine.seam import DeadlyTask, Engine, Place, Tasks, WorkersDied
from balance.errors import UserError
from balance.records import QUALITY, DecodeFailure, Facts
from balance.runtime import locks
from balance.runtime.remote import AnyPath
from balance.runtime.threads import Cores

_LOOK_AGAIN_S = 1.0  # for parts that another job makes


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedTask:
    """Everything a process needs to embed: picklable, no handles, no models.

    plan: all that is to be embedded; num_workers: decoders; num_threads: of torch, None for as many as it has.
    """

    directory: AnyPath
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
    _make(task, SharedTasks(Parts(task.plan)), report)


def _work(task: EmbedTask, place: Place, parts: Tasks[PlannedPart], report: Report) -> None:
    """A worker's whole life in an engine (`seam.Work`); the task's own plan is empty."""
    task = dataclasses.replace(task, device=place.device, num_workers=place.num_cores, num_threads=place.num_threads)
    _make(task, parts, report if parts.is_shared else ClipCounts(report))
    if place.device != "cpu":
        torch.cuda.empty_cache()  # this process may search next


def _make(task: EmbedTask, parts: Tasks[PlannedPart], report: Report) -> None:
    if task.num_threads is not None:
        torch.set_num_threads(task.num_threads)
    device = torch.device(task.device)
    with contextlib.ExitStack() as held:
        if device.type == "cuda":
            held.enter_context(torch.cuda.device(device))  # events belong to the current device
        _embed(task, parts, _batches(task, device, held), report)


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
    """`embed` on these devices of this machine at once, a process each; raises what it raises."""
    embed_with(Processes(_places(task, devices)), task, report)


def embed_with(engine: Engine, task: EmbedTask, report: Report) -> None:
    """Make the parts of the plan with an engine's workers; `report` is called in this process, once for each part.

    Raises UserError, and what `report` raises; finished parts stay.
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
        engine.run(_work, dataclasses.replace(task, plan=plan_parts([], 1)), Parts(task.plan), report_once)
    except WorkersDied as died:
        raise UserError(
            f"all encoder workers died ({died}): perhaps memory is short. Finished parts are kept: run the same "
            "command again, with fewer processes (num_processes=1) if need be"
        ) from None
    except DeadlyTask as deadly:
        part = task.plan.part(deadly.number)
        first, last = part.paths[0].as_py(), part.paths[-1].as_py()
        raise UserError(
            f"part {part.name} ({len(part)} clips, {first} to {last}) killed its worker {deadly.deaths} times. "
            "Finished parts are kept: take out the clip that does it, or give workers more memory"
        ) from None
    finally:
        store_files.remove_leftovers(task.directory)  # a killed process's; parts are atomic, its locks stale at once


def _places(task: EmbedTask, devices: Sequence[str]) -> list[Place]:
    """What each process gets: decoders and cores divided among them."""
    count = len(devices)
    if count == 1:
        return [Place(device=devices[0], num_cores=task.num_workers, num_threads=task.num_threads)]
    num_threads = max(1, torch.get_num_threads() // count)
    return [
        Place(device=device, num_cores=len(range(i, task.num_workers, count)) or 1, num_threads=num_threads)
        for i, device in enumerate(devices)
    ]


def _embed(task: EmbedTask, parts: Tasks[PlannedPart], batches: Batches | WindowBatches, report: Report) -> None:
    left: Iterable[tuple[int, PlannedPart]] = parts
    while True:
        claimed = _Claims(task, left, parts, report)
        try:  # around the pool: its threads claim as soon as it is made
            with (
                DecoderPool(
                    task.decode, claimed.jobs(), num_workers=task.num_workers, clip_timeout_s=task.clip_timeout_s
                ) as decoders,
                pinned(decoders, torch.device(task.device)),
            ):
                _consume(task, decoders, claimed, batches, report)
        finally:
            claimed.release()
        for number, num_clips in claimed.done_by_others:
            report(Progress(num_clips=num_clips, part=number, by_others=True))
        left = claimed.held_by_others
        if not left:
            return
        time.sleep(_LOOK_AGAIN_S)  # another job holds them: look again for its part, or its death


class _Claims:
    """Goes through parts in order, taking the lock of each that is not yet made; the decoders pull jobs through it.

    A part of this worker alone is made whoever holds its lock: a dead worker's of another node is stale only after
    minutes. The lock then says that the draft of the part is no left-over.
    """

    def __init__(
        self, task: EmbedTask, parts: Iterable[tuple[int, PlannedPart]], tasks: Tasks[PlannedPart], report: Report
    ) -> None:
        self._directory, self._parts, self._tasks, self._report = task.directory, parts, tasks, report
        self._locks: dict[int, locks.Lock] = {}
        self._told: set[int] = set()
        self._guard = threading.Lock()
        self._stopped = False
        self.held_by_others: list[tuple[int, PlannedPart]] = []
        self.done_by_others: list[tuple[int, int]] = []  # its number and clips

    def jobs(self) -> Iterator[tuple[_Row, Job]]:
        """Each claimed part's clips."""
        for number, part in self._parts:
            if store_files.part_done(self._directory, part.name):
                self._is_done(number, part)
                continue
            with self._guard:
                if self._stopped:
                    return
                lock = locks.acquire(store_files.lock_path(self._directory, part.name))
                if lock is not None:
                    self._locks[number] = lock
                elif self._tasks.is_shared:
                    self.held_by_others.append((number, part))
                    continue
            if store_files.part_done(self._directory, part.name):  # made between the look and the lock
                self.release(number)
                self._is_done(number, part)
                continue
            for row, job in enumerate(part.jobs()):
                yield _Row(number, part, row), job

    def _is_done(self, number: int, part: PlannedPart) -> None:
        if self._tasks.is_shared:
            self.done_by_others.append((number, len(part)))
        else:  # the driver waits for it
            self._report(Progress(num_clips=len(part), part=number, by_others=True))
            self._tasks.finish(number)

    @property
    def is_shared(self) -> bool:
        return self._tasks.is_shared

    def finish(self, part: _OpenPart) -> None:
        """A part is in the store; told once."""
        with self._guard:
            if part.number in self._told:
                return
            self._told.add(part.number)
        self.release(part.number)
        self._report(Progress(part=part.number, failures=tuple(part.failures)))
        self._tasks.finish(part.number)

    def release(self, part: int | None = None) -> None:
        """Give back one lock, or all and claim no more."""
        with self._guard:
            if part is None:
                self._stopped = True
            for number in list(self._locks) if part is None else [part]:
                if number in self._locks:
                    self._locks[number].release()  # a signal in here comes back for those that are still listed
                    del self._locks[number]


@dataclass(frozen=True, slots=True)
class _Row:
    """A clip's place: the part's number, the part, the row in it."""

    number: int
    part: PlannedPart
    row: int


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
            claimed.finish(written)

    def write(part: _OpenPart, finished: Finished, made_by: dict[str, Any]) -> None:
        part.write(task.directory, finished, made_by)
        if not claimed.is_shared:  # the driver that hands out the next part waits for this one
            claimed.finish(part)

    with ThreadPoolExecutor(1, "part writer") as writer:
        for at, job, result in decoders.results():
            if current is None:
                current = _OpenPart(at.number, at.part)
            if isinstance(result, Undecoded):
                batches.discard()
                current.fail(at.row, job, result.reason, result.detail)
            else:
                batches.add(result)
                if not result.is_last:
                    continue
                current.add(at.row, job, result)
            report(Progress(num_clips=1))
            if at.row + 1 == len(at.part):
                settle()  # one at a time bounds the memory
                written, current = current, None
                writing = writer.submit(write, written, batches.finish(), batches.made_by())
            elif writing is not None and writing.done():
                settle()
        settle()


@dataclass(slots=True)
class _OpenPart:
    """The facts of a part's decoded clips, in order, until it is written."""

    number: int
    part: PlannedPart
    rows: list[int] = field(default_factory=list)  # of the decoded clips in the part
    jobs: list[Job] = field(default_factory=list)
    facts: list[tuple[int, int, float, bytes, tuple[float, ...]]] = field(default_factory=list)
    failures: list[DecodeFailure] = field(default_factory=list)
    partial: dict[str, str] = field(default_factory=dict)

    def fail(self, row: int, job: Job, reason: str, detail: str) -> None:
        size_bytes, time_ns = self.part.stamps[row].tolist()
        self.failures.append(DecodeFailure(job.id, job.path, reason, detail, (size_bytes, time_ns)))

    def add(self, row: int, job: Job, clip: Decoded) -> None:
        self.rows.append(row)
        self.jobs.append(job)
        self.facts.append((clip.sample_rate, clip.num_samples, clip.rms_db, clip.pcm_sha1, clip.quality))
        if clip.partial:
            self.partial[job.path] = clip.partial

    def write(self, directory: AnyPath, finished: Finished, made_by: dict[str, Any]) -> None:
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
                np.array([f[4] for f in facts], dtype=np.float32).reshape(-1, len(QUALITY)),
            ),
            stamps=self.part.stamps[[self.rows[i] for i in kept]],
            partial={self.jobs[i].path: words for i in kept if (words := self.partial.get(self.jobs[i].path))},
        )
        store_files.write_part(directory, self.part.name, rows, self.failures, made_by)
